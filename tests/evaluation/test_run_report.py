from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lit_ft.backbones.freezing import Staged
from lit_ft.errors import UserError
from lit_ft.evaluation import run_report
from lit_ft.evaluation.run_report import RunReport, format_data_table
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.plan import UnfreezingState
from lit_ft.unfreezing.strategies import make_plan
from lit_ft.unfreezing.view import stage_rates


class Board(TensorBoardLogger):
    """A TensorBoard logger, and its writer, that only remember."""

    def __init__(self):
        self.scalars, self.images, self.texts, self.summaries, self.params = [], [], [], [], {}
        self.file_writer = self

    @property
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        self.scalars += [(name, value, step) for name, value in metrics.items()]

    def log_hyperparams(self, params):
        self.params |= params

    def add_summary(self, summary, step=None):
        if any(value.HasField("image") for value in summary.value):
            self.images += [(value.tag, step) for value in summary.value]
        else:
            self.summaries.append(summary)

    def add_text(self, tag, text, step):
        self.texts.append((tag, text, step))

    def add_custom_scalars(self, layout):
        self.layout = layout

    def save(self):
        pass


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
        "state": SimpleNamespace(fn="fit"),
        "world_size": 1,
        "callback_metrics": {},
        "checkpoint_callbacks": [],
        "train_dataloader": None,
    }
    return SimpleNamespace(**{**defaults, **options})


@pytest.fixture
def board():
    return Board()


def test_rate_of_a_stage_is_shown_as_zero_while_it_is_frozen(board):
    plan = make_plan("gradual", ["stem", "layer1", "head"], max_epochs=3)
    run = trainer(plan, current_epoch=1, global_step=7, loggers=[board])
    for group, rate in zip(run.optimizers[0].param_groups, (3.0, 3.0, 2.0, 2.0, 1.0, 1.0), strict=True):
        group["lr"] = rate
    assert stage_rates(run) == {"head": 3.0, "layer1": 2.0, "stem": 1.0}
    RunReport().on_train_epoch_start(run, Three())
    assert board.scalars[:1] == [("phase/number", 2, 7)]
    assert board.scalars[2:] == [("lr/head", 3.0, 7), ("lr/layer1", 2.0, 7), ("lr/stem", 0.0, 7)]


@pytest.mark.parametrize(("step", "every", "expected"), [(4, 5, 0), (5, 5, 3), (10, 5, 3), (5, 0, 0)])
def test_rates_are_logged_as_often_as_the_trainer_logs(board, step, every, expected):
    run = trainer(make_plan("full", ["stem", "layer1", "head"], 1), global_step=step, loggers=[board])
    run.log_every_n_steps = every
    RunReport().on_train_batch_end(run, Three(), None, None, 0)
    assert len(board.scalars) == expected


def test_negative_numbers_of_images_are_refused():
    for key in ("num_images", "projector_images"):
        with pytest.raises(UserError, match=rf"^report.{key}: must be at least 0, got -1$"):
            RunReport(**{key: -1})


def test_first_screen_layout_and_parameters_are_logged(board, capsys):
    run = trainer(make_plan("gradual", ["stem", "layer1", "head"], max_epochs=3), loggers=[board])
    report = RunReport()
    report.on_fit_start(run, Three())
    assert "Plan  resnet18" in capsys.readouterr().out
    assert board.params == {"strategy": "full", "epochs": 3}  # the backbone is among the model's own
    report.on_train_epoch_start(run, Three())
    assert (board.texts, board.images, board.scalars) == ([], [], [])
    run.global_step, run.current_epoch = 1, 1
    report.on_train_batch_end(run, Three(), None, None, 0)
    assert {step for *_, step in board.scalars} == {0}
    assert [tag for tag, *_ in board.texts] == ["plan"]
    assert [tag for tag, *_ in board.images] == ["plan"]
    assert "^phase/trained_share$" in board.layout["Run"]["loss"][1]
    assert len(board.summaries) == 3


def test_what_waits_for_a_first_step_is_logged_in_the_end_where_there_was_none(board):
    run, report = trainer(make_plan("gradual", ["stem", "layer1", "head"], max_epochs=3), loggers=[board]), RunReport()
    report.on_fit_start(run, Three())
    report.on_fit_end(run, Three())
    report.on_fit_end(run, Three())
    assert [tag for tag, *_ in board.texts + board.images] == ["plan", "plan"]


class Best:
    """A callback that keeps the best checkpoint, at the end of each epoch."""

    monitor, mode, best_model_score = "val/loss", "min", None


def test_confusion_matrix_is_drawn_of_new_best_epochs_once_a_minute(board, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(run_report, "time", SimpleNamespace(monotonic=lambda: now[0]))
    drawn = []
    monkeypatch.setattr(run_report, "log_confusion", lambda *args: drawn.append((args[2], args[4])))
    best, callback = Best(), RunReport()
    run = trainer(make_plan("full", ["stem", "layer1", "head"], 1), loggers=[board], checkpoint_callbacks=[best])
    callback.setup(run, Three(), "fit")

    def validate(loss, step):
        run.callback_metrics, run.global_step = {"val/loss": torch.tensor(loss)}, step
        callback.on_validation_start(run, Three())
        outputs = {"logits": torch.full((2, 3), loss), "targets": torch.tensor([0, 1])}
        callback.on_validation_batch_end(run, Three(), outputs, None, 0)
        callback.on_validation_end(run, Three())
        if not run.sanity_checking:
            best.best_model_score = min(loss, best.best_model_score or loss)
        now[0] += 40

    run.sanity_checking = True
    validate(0.1, 0)
    run.sanity_checking = False
    for step, loss in enumerate([0.9, 0.8, 0.85, 0.7]):  # at 1040, 1080, 1120 and 1160, of a run that began at 1000
        validate(loss, step)
    assert [step for _, step in drawn] == [1, 3]
    assert drawn[1][0].logits.eq(0.7).all()
    assert drawn[1][0].metrics == {"val/loss": pytest.approx(0.7)}


@pytest.mark.parametrize(
    ("num_images", "step", "dtype", "expected"),
    [(4, 0, torch.uint8, 1), (0, 0, torch.uint8, 0), (4, 1, torch.uint8, 0), (4, 0, torch.float, 0)],
)
def test_images_of_the_first_batch_are_shown(board, num_images, step, dtype, expected):
    images = torch.full((6, 3, 8, 8), 7, dtype=dtype)
    run = trainer(global_step=step, loggers=[board])
    RunReport(num_images).on_train_batch_start(run, Three(), (images, torch.zeros(6).long()), 0)
    assert [tag for tag, *_ in board.images] == ["train/images"] * expected


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
