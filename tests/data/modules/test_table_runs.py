"""Runs on tables and splits by the command line."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

QUICK = ("--trainer.max_epochs", 1, "--unfreeze", "null", "--report.num_images", 0)
TABLE = ("--data", "ImageTableDataModule", "--data.num_workers", 0)
RUN = Path("logs/run/version_0")


@pytest.fixture
def table(photo_root):
    """The photos with their class, whether they are warm and even, and two numbers."""
    path = photo_root / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "warm", "even", "age", "size", "patient"])
        for kind in ("ant", "bee", "cat"):
            for i in range(10):
                writer.writerow(
                    [f"{kind}/{i}.png", kind, int(kind == "ant"), 1 - i % 2, i / 4, 2 - i, f"{kind}{i // 2}"]
                )
    return path


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


PRIOR = ("--model.head.zero_init", "true", "--model.head.prior_bias", "true", "--model.lr", 1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "columns", "screen", "options"),
    [
        ("multilabel", ["warm", "even"], [": 2 labels (warm, even)\n", "24 images, 9 to 10 a label\n"], PRIOR),
        ("regression", ["age", "size"], [": 2 numbers (age, size)\n", "24 images\n"], ()),
    ],
)
def test_labels_and_numbers_from_fit_to_predictions(run, table, photo_root, task, columns, screen, options):
    data = (*TABLE, "--data.table", table, "--data.label_columns", f"[{', '.join(columns)}]")
    printed = run("fit", *data, *QUICK, "--model.task", task, "--name", "run", *options)
    assert all(line in printed for line in screen), printed
    assert yaml.safe_load((RUN / "config.yaml").read_text())["data"]["init_args"]["task"] == task
    split = rows(RUN / "split.csv")
    assert split[0] == ["path", *columns, "split"]
    order = [rows(table)[0].index(column) for column in columns]
    given = {str(photo_root / row[0]): [float(row[k]) for k in order] for row in rows(table)[1:]}
    assert {row[0]: [float(cell) for cell in row[1:-1]] for row in split[1:]} == given
    if task == "multilabel":
        saved = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        shares = torch.tensor([given[row[0]] for row in split if row[-1] == "train"]).mean(dim=0)
        torch.testing.assert_close(saved["head.0.bias"], shares.logit(), atol=1e-5, rtol=0)
    config = ("--config", RUN / "config.yaml", "--ckpt_path", RUN / "checkpoints/best.ckpt")
    assert {"multilabel": "test/f1", "regression": "test/mse"}[task] in run("test", *config)
    run("predict", *config)
    written = rows(RUN / "predictions.csv")
    assert written[0] == ["path", *columns]
    assert [row[0] for row in written[1:]] == [row[0] for row in split if row[-1] == "val"]
    # Photos without labels need no table.
    new = ("--data", "ImageFolderDataModule", "--data.predict", photo_root / "bee", "--data.num_workers", 0)
    run("predict", *new, "--ckpt_path", RUN / "checkpoints/best.ckpt", "--predictions.overwrite", "true")
    assert len(rows(RUN / "predictions.csv")) == 11


def test_task_of_the_data_must_be_the_models(refused, table):
    data = (*TABLE, "--data.table", table)
    line = refused("fit", *data, *QUICK, "--data.task", "regression", "--data.label_columns", "[age]")
    assert line == (
        "lit-ft: --model.task: multiclass, but the targets of ImageTableDataModule are for regression; give "
        "--model.task regression, or other data"
    )
    line = refused("fit", "--data", "ImageFolderDataModule", "--data.root", table.parent, "--model.task", "multilabel")
    assert "--model.task: multilabel, but the targets of ImageFolderDataModule are for multiclass; " in line


@pytest.mark.filterwarnings("ignore:.*are no images, and not used")  # the table, beside the photos
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_split_of_a_run_is_reusable(run, table, photo_root, kind):
    """With the same images, classes and order, so that the same run comes of it, bit for bit."""
    first = {
        "folder": ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.groups", "([0-9])"),
        "table": (*TABLE, "--data.table", table, "--data.group_column", "patient"),
    }[kind]
    run("fit", *first, *QUICK, "--data.num_workers", 0, "--data.split_seed", 3, "--data.shots", 2, "--name", "run")
    assert rows(RUN / "split.csv")[0] == ["path", "label", "split", "group" if kind == "folder" else "patient"]
    assert len(rows(RUN / "split.csv")) == 31
    again = ("--data.table", RUN / "split.csv", "--data.shots", 2, "--data.split_seed", 3)
    if kind == "folder":
        run("fit", *TABLE, *again, *QUICK, "--name", "again")
    else:
        run("fit", "--config", RUN / "config.yaml", *again, "--name", "again")
    ends = [torch.load(f"logs/{name}/version_0/checkpoints/last.ckpt", weights_only=True) for name in ("run", "again")]
    assert ends[0]["hyper_parameters"]["classes"] == ends[1]["hyper_parameters"]["classes"] == ["ant", "bee", "cat"]
    assert all(ends[1]["state_dict"][name].equal(weight) for name, weight in ends[0]["state_dict"].items())
    # What is written of it is the same, but for the groups that the first again does not name.
    width = 3 if kind == "folder" else 4
    again = rows("logs/again/version_0/split.csv")
    assert again == [row[:width] for row in rows(RUN / "split.csv")]


class SeesSplit(Callback):
    """Reads the split as the first batch comes."""

    rows: list[list[str]] = []  # noqa: RUF012

    def on_train_batch_start(self, trainer, *_):
        type(self).rows = rows(Path(trainer.log_dir) / "split.csv")


def test_split_is_written_before_training_and_by_a_fit_alone(run, photo_root):
    data = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0, "--name", "run")
    run("plan", *data)
    assert not list(Path().rglob("split.csv"))
    run("fit", *data, *QUICK, "--trainer.callbacks+", f"{__name__}.SeesSplit")
    assert len(SeesSplit.rows) == 31


def test_fit_that_cannot_read_its_first_batch_leaves_nothing(refused, photo_root, monkeypatch):
    for path in photo_root.rglob("*.png"):
        path.write_text("no image")
    monkeypatch.setattr("lit_ft.data.images.verification.find_unreadable", lambda paths, reader: ({}, {}))
    data = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.num_workers", 0, "--name", "run")
    assert "cannot be read as an image" in refused("fit", *data, *QUICK)
    assert [str(path) for path in Path().rglob("*")] == []


@pytest.mark.slow
def test_photos_are_trained_on_by_two_processes(photo_root, tmp_path):
    (photo_root / "bee" / "3.png").write_text("no image")
    data = ("--data", "ImageFolderDataModule", "--data.root", photo_root, "--data.on_bad_image", "skip")
    data += ("--data.num_workers", 0, "--data.cache", tmp_path / "copies", "--data.batch_size", 4)
    ddp = ("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp", "--name", "run")
    command = [sys.executable, "-m", "lit_ft", "finetune", *data, *ddp, *QUICK, "--trainer.default_root_dir", tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "left out  1 image(s)" in done.stdout
    written = rows(tmp_path / "run" / "version_0" / "split.csv")
    assert len(written) == len({row[0] for row in written}) == 31
    assert len(list((tmp_path / "copies").glob("*.safetensors"))) == 1
