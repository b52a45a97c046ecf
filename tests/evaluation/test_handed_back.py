import csv
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from small_runs import FewDigits, small_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ft.evaluation import run_report
from lit_ft.evaluation.handed_back import predict_again, worst_mistakes
from lit_ft.evaluation.run_report import RunReport
from lit_ft.evaluation.tensorboard import BoardLogger
from lit_ft.runs import Run
from lit_ft.tasks.task import Task
from lit_ft.training.history import HistoryWriter
from lit_ft.training.selected import ValidationOutputs
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing


def finetuned(folder, strategy, head_fit, max_epochs=2, ckpt_path=None):
    best = ModelCheckpoint(folder / "checkpoints", "best", "val/loss", enable_version_counter=False)
    last = ModelCheckpoint(folder / "checkpoints", "last", save_on_train_epoch_end=True, enable_version_counter=False)
    loggers = [BoardLogger(folder.parent, folder.name, "", default_hp_metric=False)]
    loggers += [CSVLogger(folder.parent, folder.name, f"csv{max_epochs}")]
    unfreezing = GradualUnfreezing(strategy, head_fit=head_fit, head_epochs=1)
    L.seed_everything(1)
    module, data = small_module(lr=0.001), FewDigits(shots=4, batch_size=10)
    trainer = Trainer(
        accelerator="cpu", max_epochs=max_epochs, enable_progress_bar=False, enable_model_summary=False,
        logger=loggers, num_sanity_val_steps=0, log_every_n_steps=2,
        callbacks=[unfreezing, RunReport(projector_images=30), HistoryWriter(), best, last],
    )  # fmt: skip
    trainer.run = Run(folder)
    trainer.finetune(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module", params=["solved", "trained"])
def run(request, tmp_path_factory):
    """A run of two phases, and what its board has."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    trainer = finetuned(folder, "lp_ft", request.param)
    board = EventAccumulator(str(folder), {"images": 0, "scalars": 0})
    board.Reload()
    return trainer, board


def values(board, tag):
    return [event.value for event in board.Scalars(tag)]


def test_board_has_curves_and_neither_epochs_nor_hp_metric(run):
    trainer, board = run
    tags = set(board.Tags()["scalars"])
    assert not tags & {"epoch", "hp_metric"}
    history = list(csv.DictReader(trainer.run.history.open(encoding="utf-8-sig")))
    assert values(board, "train/acc") == pytest.approx([float(row["train/acc"]) for row in history])
    steps = [event.step for event in board.Scalars("train/acc")]
    assert steps == [event.step for event in board.Scalars("val/acc")]
    assert {tag for tag in tags if tag.startswith("drift/")} == {"drift/conv", "drift/dense"}
    assert values(board, "drift/dense")[-1] > 0
    assert all(value > 0 for value in values(board, "speed/images_per_second"))
    assert all(0 < value <= 1 for value in values(board, "speed/share_waiting_for_data"))


def test_metrics_are_those_of_the_model_that_is_handed_back(run):
    trainer, board = run
    written = json.loads(trainer.run.metrics.read_text())["val"]
    for name in ("loss", "acc"):
        assert values(board, f"val_best/{name}") == [pytest.approx(written[f"val/{name}"], rel=1e-5)]
    names = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert all(name in names for name in (b"val_best/acc", b"test/acc", b"strategy", b"lr_decay", b"seed"))


def test_pictures_and_points_are_of_the_validation_images(run):
    trainer, board = run
    tags = {"plan", "train/images", "val/confusion_matrix", "val/worst_mistakes"}
    assert set(board.Tags()["images"]) == tags
    place = trainer.run.projector
    rows = [line.split("\t") for line in (place / "images.tsv").read_text().splitlines()]
    assert rows[0] == ["class", "predicted", "right"]
    targets = trainer.datamodule.splits["val"].targets
    assert [row[0] for row in rows[1:]] == [str(int(target)) for target in targets[::2]]  # 19 of 37, as 30 are fewer
    assert [row[2] for row in rows[1:]] == ["yes" if row[0] == row[1] else "no" for row in rows[1:]]
    assert [len(line.split("\t")) for line in (place / "features.tsv").read_text().splitlines()] == [128] * 19
    with Image.open(place / "sprites.jpg") as sprites:
        assert sprites.size == (5 * 48, 5 * 48)  # 19 of 25 places
    again = predict_again(trainer, trainer.lightning_module)
    guesses = again.logits.argmax(dim=1)[::2].tolist()
    assert [row[1] for row in rows[1:]] == [str(guess) for guess in guesses]


def test_csv_logger_has_the_same_scalars(run):
    trainer, board = run
    rows = list(csv.DictReader((trainer.run.folder / "csv2" / "metrics.csv").open()))
    found = {name for row in rows for name, cell in row.items() if cell} - {"epoch", "step"}
    assert found == set(board.Tags()["scalars"])
    csv_drift = [float(row["drift/dense"]) for row in rows if row["drift/dense"]]
    assert csv_drift == pytest.approx(values(board, "drift/dense"))


def test_run_that_is_resumed_after_its_best_epoch_predicts_again(tmp_path, monkeypatch):
    trainer = finetuned(tmp_path / "run", "full", "trained", max_epochs=1)
    monkeypatch.setattr(run_report, "_is_best", lambda trainer: False)
    seen = []
    monkeypatch.setattr(run_report, "log_handed_back", lambda *args: seen.append(args[2]))
    finetuned(tmp_path / "run", "full", "trained", max_epochs=2, ckpt_path=str(trainer.run.last))
    [outputs] = seen
    assert len(outputs.logits) == len(outputs.targets) == len(outputs.features) == 37


def test_run_whose_pictures_fail_is_whole(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no\nspace")

    monkeypatch.setattr(run_report, "log_handed_back", fail)
    with pytest.warns(UserWarning, match=r"^the model that is handed back is not logged \(no space\)$"):
        trainer = finetuned(tmp_path / "run", "full", "trained", max_epochs=1)
    assert "test" in json.loads(trainer.run.metrics.read_text())


def test_worst_mistakes_are_wrong_and_sorted_by_loss():
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 9.0], [0.2, 0.0]])
    targets = torch.tensor([0, 0, 0, 0])
    outputs = ValidationOutputs(logits, targets, None, torch.empty(0), {})
    assert worst_mistakes(outputs, Task("multiclass", 2)).tolist() == [2, 1]
    outputs = ValidationOutputs(torch.tensor([[0.0], [3.0], [1.0]]), torch.zeros(3, 1), None, torch.empty(0), {})
    assert worst_mistakes(outputs, Task("regression", 1)).tolist() == [1, 2, 0]
