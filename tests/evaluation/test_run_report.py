from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lit_ft.backbones.freezing import Staged
from lit_ft.evaluation import run_report, tensorboard
from lit_ft.evaluation.run_report import RunReport, format_data_table
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.plan import UnfreezingState
from lit_ft.unfreezing.strategies import make_plan
from lit_ft.unfreezing.view import stage_rates


class Board:
    """A TensorBoard writer that only remembers."""

    def __init__(self):
        self.scalars, self.images, self.texts, self.figures = [], [], [], []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def add_image(self, tag, image, step):
        self.images.append((tag, image, step))

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def add_figure(self, tag, figure, step):
        self.figures.append((tag, figure, step))


class Three(Staged, L.LightningModule):
    """A module of three stages of 100, 900 and 1000 parameters."""

    def __init__(self, stages=("stem", "layer1", "head")):
        super().__init__()
        self.layers = nn.ModuleDict(
            {stage: nn.Linear({"stem": 9, "layer1": 89}.get(stage, 99), 10) for stage in stages}
        )
        self.save_hyperparameters({"backbone": "resnet18"})
        self.class_names = ["ant", "bee", "cat"]
        self.task = SimpleNamespace(name="multiclass")

    def stage_modules(self):
        return {name: [layer] for name, layer in self.layers.items()}


def trainer(plan=None, lr_decay=0.5, **options):
    callback = GradualUnfreezing("full")
    callback.state = plan and UnfreezingState(plan)
    groups = [
        {"stage": stage, "lr": 0.0, "initial_lr": 0.01 * lr_decay**depth}
        for depth, stage in enumerate(["head", "layer1", "stem"])
        for _ in range(2)
    ]
    defaults = {
        "callbacks": [callback],
        "optimizers": [SimpleNamespace(param_groups=groups)],
        "strategy": SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        "current_epoch": 0,
        "global_step": 0,
        "log_every_n_steps": 5,
        "sanity_checking": False,
        "datamodule": None,
        "max_epochs": 3,
        "fast_dev_run": False,
        "is_global_zero": True,
        "log_dir": None,
        "loggers": [],
    }
    return SimpleNamespace(**{**defaults, **options})


@pytest.fixture
def board(monkeypatch):
    board = Board()
    for module in (tensorboard, run_report):
        monkeypatch.setattr(module, "find_board", lambda _: board)
    return board


def test_rate_of_a_stage_is_shown_as_zero_while_it_is_frozen(board):
    plan = make_plan("gradual", ["stem", "layer1", "head"], max_epochs=3)
    run = trainer(plan, current_epoch=1, global_step=7)
    for group, rate in zip(run.optimizers[0].param_groups, (3.0, 3.0, 2.0, 2.0, 1.0, 1.0), strict=True):
        group["lr"] = rate
    assert stage_rates(run) == {"head": 3.0, "layer1": 2.0, "stem": 1.0}
    RunReport().on_train_epoch_start(run, Three())
    assert board.scalars == [("phase", 1, 7), ("lr/head", 3.0, 7), ("lr/layer1", 2.0, 7), ("lr/stem", 0.0, 7)]


@pytest.mark.parametrize(("step", "every", "expected"), [(4, 5, 0), (5, 5, 4), (10, 5, 4), (5, 0, 0)])
def test_rates_are_logged_as_often_as_the_trainer_logs(board, step, every, expected):
    run = trainer(make_plan("full", ["stem", "layer1", "head"], 1), global_step=step)
    run.log_every_n_steps = every
    RunReport().on_train_batch_end(run, Three(), None, None, 0)
    assert len(board.scalars) == expected


@pytest.fixture
def clock(monkeypatch):
    """The time, for the test to set."""
    clock = SimpleNamespace(now=1000.0)
    # Not that of all: what waits for a worker process with a time limit would wait for ever.
    monkeypatch.setattr(tensorboard, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_confusion_matrix_counts_an_epoch_without_the_sanity_check(board, capsys, clock):
    run, callback = trainer(make_plan("full", ["stem", "layer1", "head"], 1), global_step=9), RunReport()
    callback.on_fit_start(run, Three())
    assert "Plan  resnet18" in capsys.readouterr().out
    assert [tag for tag, *_ in board.texts] == ["plan"]
    assert [tag for tag, *_ in board.figures] == ["plan"]
    board.figures.clear()

    def validate(guessed, true):
        outputs = {"logits": 5.0 * nn.functional.one_hot(torch.tensor(guessed), 3), "targets": torch.tensor(true)}
        callback.on_validation_batch_end(run, Three(), outputs, None, 0)
        callback.on_validation_epoch_end(run, Three())

    run.sanity_checking = True
    validate([2, 2], [2, 2])
    assert board.figures == []
    run.sanity_checking = False
    for epoch, (guessed, true) in enumerate([([0, 1, 1], [0, 0, 1]), ([1], [0])]):
        validate(guessed, true)
        clock.now += tensorboard.INTERVAL_SECONDS
        tag, figure, step = board.figures[epoch]
        assert (tag, step) == ("val/confusion_matrix", 9)
        counts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
        assert counts == [{(0, 0): "1", (1, 0): "1", (1, 1): "1"}, {(1, 0): "1"}][epoch]


def test_confusion_matrices_of_short_epochs_are_left_out_but_for_the_last(board, clock):
    run, callback = trainer(make_plan("full", ["stem", "layer1", "head"], 1), checkpoint_callbacks=[]), RunReport()
    callback.on_fit_start(run, Three())
    board.figures.clear()
    for step in range(1, 7):  # at 1000, 1004, 1008, 1012, 1016 and 1020
        run.global_step = step
        outputs = {"logits": torch.eye(3)[:1], "targets": torch.zeros(1).int()}
        callback.on_validation_batch_end(run, Three(), outputs, None, 0)
        callback.on_validation_epoch_end(run, Three())
        clock.now += 4
    assert [step for _, _, step in board.figures] == [1, 4]
    for _ in range(2):  # a second fit, or end, has nothing more to draw
        callback.on_fit_end(run, Three())
    assert [step for _, _, step in board.figures] == [1, 4, 6]
    [text] = board.figures[-1][1].axes[0].texts
    assert text.get_text() == "1"


@pytest.mark.parametrize(
    ("options", "task", "num_classes"),
    [({"confusion_matrix": False}, "multiclass", 3), ({}, "regression", 3), ({}, "multiclass", 101)],
)
def test_no_confusion_matrix_where_it_is_off_or_says_nothing(board, options, task, num_classes):
    model = Three()
    model.task.name, model.class_names = task, [str(i) for i in range(num_classes)]
    callback = RunReport(**options)
    run = trainer(make_plan("full", ["stem", "layer1", "head"], 1))
    callback.on_fit_start(run, model)
    callback.on_validation_batch_end(run, model, {"logits": torch.zeros(1, 3), "targets": torch.tensor([0])}, None, 0)
    callback.on_validation_epoch_end(run, model)
    assert [tag for tag, *_ in board.figures] == ["plan"]


@pytest.mark.parametrize(
    ("num_images", "step", "dtype", "expected"),
    [(4, 0, torch.uint8, 1), (0, 0, torch.uint8, 0), (4, 1, torch.uint8, 0), (4, 0, torch.float, 0)],
)
def test_images_of_the_first_batch_are_shown(board, num_images, step, dtype, expected):
    images = torch.full((6, 3, 8, 8), 7, dtype=dtype)
    RunReport(num_images).on_train_batch_start(trainer(global_step=step), Three(), (images, None), 0)
    assert len(board.images) == expected
    if expected:
        tag, grid, _ = board.images[0]
        assert tag == "train/images"
        assert (grid[0] == 7).sum() == 4 * 8 * 8


def test_images_are_shown_as_the_network_sees_them(board):
    class Darkens(Three):
        def pictured(self, batch, batch_idx):
            return batch[0] // 2 + batch_idx

    RunReport(2).on_train_batch_start(trainer(), Darkens(), (torch.full((6, 3, 8, 8), 8, dtype=torch.uint8), None), 0)
    [(_, grid, _)] = board.images
    assert (grid[0] == 4).sum() == 2 * 8 * 8


def test_large_images_are_shown_smaller(board):
    RunReport(2).on_train_batch_start(trainer(), Three(), (torch.full((6, 3, 448, 224), 7, dtype=torch.uint8), None), 0)
    [(_, grid, _)] = board.images
    assert (grid[0] == 7).sum() == 2 * 112 * 56


def test_best_score_is_put_beside_the_hyperparameters(tmp_path):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    checkpoint = SimpleNamespace(best_model_score=torch.tensor(0.75), monitor="val/acc")
    RunReport().on_fit_end(trainer(loggers=[logger], checkpoint_callbacks=[checkpoint]), Three())
    logger.experiment.flush()
    board = EventAccumulator(logger.log_dir)
    board.Reload()
    assert [event.value for event in board.Scalars("hp_metric")] == [0.75]
    assert b"resnet18" in board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content


def test_data_table_shows_classes_and_images_of_each_split():
    class Digits:
        class_names = ("zero", "one")

        def counts(self):
            return {"train": [1000, 1000], "val": [7, 5]}

    assert format_data_table(Digits()).splitlines() == [
        "Data  Digits: 2 classes (zero, one)",
        "  train     2,000 images, 1000 a class",
        "  val          12 images, 5 to 7 a class",
    ]


def test_data_table_of_many_classes_shows_the_first_ten():
    data = SimpleNamespace(class_names=list("abcdefghijkl"), counts=dict)
    assert format_data_table(data) == "Data  SimpleNamespace: 12 classes (a, b, c, d, e, f, g, h, i, j, …)"


def test_data_table_of_labels_and_numbers():
    data = SimpleNamespace(
        task="multilabel", class_names=["a", "b"], counts=lambda: {"train": [7, 3]}, sizes=lambda: {"train": 8}
    )
    assert format_data_table(data).splitlines() == [
        "Data  SimpleNamespace: 2 labels (a, b)",
        "  train         8 images, 3 to 7 a label",
        "  labels  'a' 7, 'b' 3",
    ]
    data.class_names = [f"label, {i}" for i in range(102)]
    data.counts = lambda: {"train": list(range(102))}
    assert format_data_table(data).splitlines()[-1].startswith("  labels  'label, 0' 0, 'label, 1' 1, ")
    assert format_data_table(data).splitlines()[-1].endswith(", 'label, 99' 99, and 2 more")
    data.task, data.class_names = "regression", ["age"]
    assert format_data_table(data).splitlines() == ["Data  SimpleNamespace: 1 number (age)", "  train         8 images"]


@pytest.mark.parametrize("data", [None, SimpleNamespace(num_classes=3)])
def test_data_table_of_loaders(data):
    assert format_data_table(data) == "Data: given as loaders"
