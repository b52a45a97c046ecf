"""Tables and intervals of the results of an evaluation."""

import csv
import json
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from probe_sets import write_photos
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from small_runs import FewDigits, small_module

from lit_ft import ImageFolderDataModule
from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.errors import UserError
from lit_ft.evaluation import results
from lit_ft.evaluation.results import ResultWriter, bootstrap, class_rows, confusion_rows, prediction_rows
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run
from lit_ft.tasks.task import Task
from lit_ft.training.evaluated import Evaluated, join
from lit_ft.training.history import HistoryWriter
from lit_ft.training.trainer import Trainer

NAMES = ["ant", "=bee", "cat", "none of this"]


def evaluated(num=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (num,), generator=generator)
    logits = torch.randn(num, 4, generator=generator) + 2 * torch.nn.functional.one_hot(targets, 4)
    return Evaluated(logits, targets, [f"{row}.jpg" for row in range(num)])


def numbers(row):
    return [math.nan if cell == "" else float(cell) for cell in row]


def test_row_of_an_image_has_its_classes_probability_and_loss():
    found = evaluated(5)
    header, *rows = prediction_rows(found, Task("multiclass", 4), NAMES)
    assert header == ["path", "class", "predicted", "probability", "loss"]
    shares = found.logits.softmax(dim=1)
    for row, logits, target, share in zip(rows, found.logits, found.targets.tolist(), shares, strict=True):
        safe = ["ant", "'=bee", "cat", "none of this"]
        assert row[1:3] == [safe[target], safe[int(logits.argmax())]]
        assert float(row[3]) == pytest.approx(float(share.max()), rel=1e-4)
        assert float(row[4]) == pytest.approx(-math.log(share[target]), rel=1e-3)
    assert [row[0] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def test_figures_of_classes_are_those_of_scikit_learn():
    found = evaluated()
    predicted = found.logits.argmax(dim=1)
    header, *rows = class_rows(found, Task("multiclass", 4), NAMES)
    assert header == ["class", "images", "predicted", "precision", "recall", "f1"]
    expected = precision_recall_fscore_support(found.targets, predicted, labels=range(4), zero_division=math.nan)
    for k, row in enumerate(rows[:3]):
        assert numbers(row[1:3]) == [expected[3][k], int((predicted == k).sum())]
        assert numbers(row[3:]) == pytest.approx([part[k] for part in expected[:3]], abs=1e-4)
    assert rows[3][1] == "0"
    assert rows[3][4:] == ["", ""]  # of no image
    _, *counts = confusion_rows(found, NAMES)
    assert [numbers(row[1:]) for row in counts] == confusion_matrix(found.targets, predicted, labels=range(4)).tolist()


def test_labels_and_numbers_have_a_column_each():
    targets, logits = torch.tensor([[1, 0], [1, 1]]), torch.tensor([[2.0, -3.0], [-1.0, 4.0]])
    found, task = Evaluated(logits, targets, ["a", "b"]), Task("multilabel", 2)
    head = next(prediction_rows(found, task, ["=red", "b"]))
    assert head == ["path", "'=red", "b", "probability of =red", "probability of b", "loss"]
    header, first, _ = prediction_rows(found, task, ["sun", "sea"])
    assert header == ["path", "sun", "sea", "probability of sun", "probability of sea", "loss"]
    assert numbers(first[1:5]) == pytest.approx([1, 0, 0.880797, 0.0474259], rel=1e-5)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[0], targets[0].float())
    assert float(first[5]) == pytest.approx(float(loss), rel=1e-5)
    _, sun, sea = class_rows(found, task, ["sun", "sea"])
    assert sun == ["sun", "2", "1", "1.0000", "0.5000", "0.6667"]
    assert sea == ["sea", "1", "1", "1.0000", "1.0000", "1.0000"]
    values = Evaluated(torch.tensor([[0.5]]), torch.tensor([[2.0]]), ["a"])
    assert list(prediction_rows(values, Task("regression", 1), ["year"])) == [
        ["path", "year", "predicted of year", "loss"],
        ["a", "2", "0.5", "2.25"],
    ]


def test_intervals_are_those_of_the_binomial_distribution_and_of_the_mean():
    found, task = evaluated(400), Task("multiclass", 4)
    intervals = bootstrap(found, task, "test/")
    share = float((found.logits.argmax(dim=1) == found.targets).float().mean())
    losses = task.image_losses(found.logits, found.targets)
    errors = {"test/acc": math.sqrt(share * (1 - share) / 400), "test/loss": float(losses.std()) / 20}
    for name, middle in (("test/acc", share), ("test/loss", float(losses.mean()))):
        low, high = intervals[name]
        assert low < middle < high
        assert high - low == pytest.approx(2 * 1.96 * errors[name], rel=0.25)  # of 200 samples
    assert {"test/f1", "test/precision", "test/recall"} <= intervals.keys()


def test_large_sets_are_drawn_less_often(monkeypatch):
    found, task = evaluated(400), Task("multiclass", 4)
    whole = bootstrap(found, task, "test/")["test/acc"]
    monkeypatch.setattr(results, "_VALUES", 4 * found.logits.numel())
    few = bootstrap(found, task, "test/")["test/acc"]
    assert few != whole
    assert few == pytest.approx(whole, abs=0.02)
    monkeypatch.setattr(results, "_VALUES", 4 * found.logits.numel() - 1)
    assert bootstrap(found, task, "test/") == {}


def test_metric_that_is_not_defined_has_no_interval():
    found = Evaluated(torch.tensor([[0.5], [1.0]]), torch.tensor([[2.0], [2.0]]), ["a", "b"])
    assert bootstrap(found, Task("regression", 1), "val/").keys() == {"val/mse", "val/mae", "val/loss"}


def test_images_in_files_are_named_by_their_paths(tmp_path):
    data = ImageFolderDataModule(root=str(write_photos(tmp_path, {"dots": 6, "lines": 6})), val_fraction=0.5)
    data.setup()
    expected = [str(path) for path in data.splits["val"].paths]
    assert len(expected) == 6
    with pytest.warns(UserWarning, match="the validation images are tested on"):
        data.test_dataloader()
    outputs = [(torch.zeros(4, 2), torch.zeros(4)), (torch.ones(2, 2), torch.ones(2))]  # in two batches
    for split in ("test", "val"):
        assert join([outputs], data, split).names == expected
        assert join([outputs[:1]], data, split).names == expected[:4]  # of a limited one
    assert join([outputs], None, "test").names == ["0", "1", "2", "3", "4", "5"]


def test_images_of_several_processes_are_in_the_order_of_the_data():
    data = FewDigits(shots=8, batch_size=4)
    data.setup()
    num = len(data.splits["val"])
    rows = torch.arange(num, dtype=torch.float32).unsqueeze(1)
    samplers = [EpochSampler(num, 4, rank=rank, world_size=3) for rank in range(3)]
    parts = [[(rows[picks.rows], rows[picks.rows, 0]) for picks in sampler.batches()] for sampler in samplers]
    found = join(parts, data, "val")
    assert found.logits.equal(rows)
    assert found.targets.equal(rows[:, 0])
    assert join([part[:1] for part in parts], data, "val") is None  # which each has a part of
    assert join(parts, None, "val") is None


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_that_take_too_much_memory_are_not_kept(tmp_path):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ResultWriter(most_values=5 * 10)],
    )  # fmt: skip
    trainer.run = Run(tmp_path)
    trainer.run.result_table("confusion", "test").write_text("of an earlier test")
    with pytest.warns(UserWarning, match=r"too many predictions to keep, so that no .*predictions_test\.csv"):
        trainer.test(small_module(), datamodule=FewDigits(batch_size=4), verbose=False)
    assert not list(tmp_path.iterdir())


def test_a_test_and_a_validation_write_their_tables_and_a_fit_does_not(tmp_path, capsys):
    L.seed_everything(1)
    module, data, run = small_module(), FewDigits(shots=8, batch_size=16), Run(tmp_path)
    checkpoint = ModelCheckpoint(run.checkpoints, "best", "val/acc", mode="max", enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[HistoryWriter(), ResultWriter(), checkpoint],
    )  # fmt: skip
    trainer.run = run
    trainer.fit(module, datamodule=data)
    assert not list(tmp_path.glob("*_*.csv"))
    (measured,) = trainer.test(module, datamodule=data, verbose=False)
    rows = rows_of(run.result_table("predictions", "test"))
    assert [row["path"] for row in rows] == [str(i) for i in range(data.sizes()["test"])]
    right = [row["class"] == row["predicted"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(measured["test/acc"])
    assert sum(float(row["loss"]) for row in rows) / len(rows) == pytest.approx(measured["test/loss"], rel=1e-4)
    counts = rows_of(run.result_table("confusion", "test"))
    assert sum(int(row[row["class"]]) for row in counts) == sum(right)
    entry = json.loads(run.metrics.read_text())["test"]
    low, high = entry["intervals"]["test/acc"]
    assert low <= entry["test/acc"] <= high
    assert f"95% intervals  test/acc {low:.4f} to {high:.4f}, test/loss " in capsys.readouterr().out
    assert not run.result_table("predictions", "val").exists()
    (measured,) = trainer.validate(module, datamodule=data, verbose=False)
    rows = rows_of(run.result_table("predictions", "val"))
    right = [row["class"] == row["predicted"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(measured["val/acc"])
    assert len(rows_of(run.result_table("per_class", "val"))) == 10


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("multiclass", {"logits": torch.zeros(2, 4), "targets": torch.full((2, 4), 0.25)}),
        ("multiclass", {"logits": torch.zeros(2, 4), "targets": torch.zeros(2)}),
        ("multiclass", {"logits": torch.zeros(2, 3), "targets": torch.zeros(2, dtype=torch.int64)}),
        ("multiclass", {"logits": None, "targets": [0, 1]}),
        ("multilabel", {"logits": torch.zeros(2, 4), "targets": torch.zeros(2)}),
    ],
)
def test_what_a_step_of_the_users_own_gives_otherwise_is_left_alone(tmp_path, task, outputs):
    class Own(FineTuneModule):
        def test_step(self, batch, batch_idx):
            self.log("test/loss", 1.0)
            return outputs

    module = Own("mnist_cnn", weights=None, task=task, classes=list("abcd"))
    trainer = Trainer(
        logger=False, default_root_dir=tmp_path, callbacks=[ResultWriter()], accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    images = [(torch.zeros(1, 28, 28, dtype=torch.uint8), 0)] * 2
    trainer.test(module, torch.utils.data.DataLoader(images, batch_size=2))
    assert not list(tmp_path.rglob("*_test.csv"))


def test_interval_of_images_that_are_all_right_has_a_width():
    logits, targets = torch.eye(3).repeat(4, 1)[:8] * 9, torch.arange(3).repeat(4)[:8]
    right = Evaluated(logits, targets, list("abcdefgh"))
    assert bootstrap(right, Task("multiclass", 3), "test/")["test/acc"] == pytest.approx([0.6756, 1.0], abs=1e-3)
    wrong = Evaluated(-logits, targets, list("abcdefgh"))
    ends = bootstrap(wrong, Task("multiclass", 3), "test/")
    assert ends["test/acc"] == pytest.approx([0.0, 0.3244], abs=1e-3)
    assert "test/recall" not in ends


def test_refit_is_tested_on_the_validation_images_of_others_and_not_on_its_own(tmp_path, photo_root):
    run, data, others = Run(tmp_path / "run"), *(ImageFolderDataModule(photo_root, split_seed=seed) for seed in (0, 1))
    for one in (data, others):
        one.setup("test")
    run.checkpoints.mkdir(parents=True)
    torch.save({"images": data.fingerprint(), "is_refitted": True}, path := run.checkpoint("best"))

    def begin(data):
        trainer = SimpleNamespace(
            state=SimpleNamespace(fn="test"), datamodule=data, ckpt_path=str(path), log_dir=str(run.folder),
            limit_test_batches=1.0,
        )  # fmt: skip
        ResultWriter().on_test_start(trainer, None)

    begin(others)
    with pytest.raises(
        UserError, match=r"best.ckpt was trained on its validation images, too .refit., and there are no"
    ):
        begin(data)
