import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LambdaCallback, ModelCheckpoint
from small_runs import FewDigits, small_module
from torch import nn

from lit_ft.errors import UserError
from lit_ft.runs import RESULT_TABLES, Run
from lit_ft.training.history import HistoryWriter, append_row, find_best_row, keep_rows_before, read_history, read_rates
from lit_ft.training.metrics_file import write_calibration, write_metrics, write_refit
from lit_ft.training.progress import Lines
from lit_ft.training.trainer import Trainer

FIT = ("fit", "--unfreeze.strategy", "full")
RUN = Run(Path("logs/run/version_0"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "history.csv"


def test_rows_are_appended_and_new_columns_widen_the_table(path):
    append_row(path, {"epoch": 0, "train/loss": 0.1})
    first = path.stat().st_ino
    append_row(path, {"epoch": 1, "train/loss": 1e-7})
    assert path.stat().st_ino == first
    append_row(path, {"epoch": 2, "train/loss": 2.0, "val/acc": math.nan})
    append_row(path, {"epoch": 3, "train/loss": 3.0})
    assert path.read_text() == "epoch,train/loss,val/acc\n0,0.1,\n1,1e-07,\n2,2.0,nan\n3,3.0,\n"
    assert read_history(path)[1] == {"epoch": 1, "train/loss": 1e-7, "val/acc": None}
    assert [entry.name for entry in path.parent.iterdir()] == ["history.csv"]


@pytest.mark.parametrize(
    ("epoch", "torn", "left"),
    [(3, "", [0, 1, 2]), (3, "3,0.", [0, 1, 2]), (1, "", [0]), (0, "", None), (2, "3", [0, 1])],
)
def test_rows_of_epochs_that_are_trained_again_are_removed(path, epoch, torn, left):
    for number in range(3):
        append_row(path, {"epoch": number, "a": 0.5, "b": 0.25})
    with path.open("a") as file:
        file.write(torn)
    keep_rows_before(path, epoch)
    assert path.exists() == (left is not None)
    assert [row["epoch"] for row in read_history(path)] == (left or [])
    if left:
        assert path.read_text().endswith(f"{left[-1]},0.5,0.25\n")


@pytest.mark.parametrize(("text", "is_whole"), [("0,0.5", True), ("0", False)], ids=["whole", "cut short"])
def test_row_after_a_line_without_an_end_gets_a_line_of_its_own(path, text, is_whole):
    for change in (lambda: None, lambda: keep_rows_before(path, 1)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"epoch,train/loss\n{text}")
        change()
        append_row(path, {"epoch": 1, "train/loss": 0.25})
        assert path.read_text() == "epoch,train/loss\n" + "0,0.5\n" * is_whole + "1,0.25\n"


def test_history_with_a_byte_order_mark_is_read_and_continued(path):
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbfepoch,val/acc\r\n0,0.5\r\n")
    keep_rows_before(path, 1)
    append_row(path, {"epoch": 1, "val/acc": 0.75})
    assert read_history(path) == [{"epoch": 0, "val/acc": 0.5}, {"epoch": 1, "val/acc": 0.75}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"epoch,a\n0,abc\n", "could not convert string to float: 'abc'"),
        (b"epoch,a\n0,1,2\n", "more cells than columns in the row of epoch '0'"),
        (b"epoch;a\n0;1\n", "a row without an epoch: '0;1'"),
        (b"epoch,a\n,1\n", "a row without an epoch: ',1'"),
        (b"\xff\xfe\x00", "can't decode byte 0xff"),
    ],
)
def test_history_that_was_damaged_is_named_with_what_to_do(path, content, reason):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        keep_rows_before(path, 1)
    assert str(caught.value).startswith(f"{path}: not the history of a run (")
    assert reason in str(caught.value)
    assert str(caught.value).endswith("; fix or remove the file")
    assert path.read_bytes() == content


def test_history_that_does_not_exist_has_no_rows(path):
    keep_rows_before(path, 1)
    assert read_history(path) == []


def test_history_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"history\.csv: cannot be written \("):
        append_row(tmp_path / "run" / "history.csv", {"epoch": 0})


def test_rates_are_those_of_stages_that_train():
    frozen, trained = nn.Linear(1, 1).requires_grad_(False), nn.Linear(1, 1)
    groups = [
        {"params": [trained.weight], "lr": 0.25, "stage": "head"},
        {"params": [trained.bias], "lr": 0.5, "stage": "head"},
        {"params": list(frozen.parameters()), "lr": 0.5, "stage": "stem"},
    ]
    assert read_rates([torch.optim.SGD(groups)]) == {"head": 0.5, "stem": 0.0}
    assert read_rates([torch.optim.SGD(trained.parameters(), lr=0.25)]) == {"model": 0.25}


@pytest.mark.parametrize(("score", "epoch"), [(torch.tensor(0.1), 1), (torch.tensor(0.3), None), (None, None)])
def test_best_row_is_the_first_with_the_best_score(score, epoch):
    of_float32 = float(torch.tensor(0.1))
    rows = [{"epoch": 0, "val/loss": 0.5}, {"epoch": 1, "val/loss": of_float32}, {"epoch": 2, "val/loss": of_float32}]
    assert (find_best_row(rows, "val/loss", score) or {"epoch": None})["epoch"] == epoch


def rows_of(folder):
    with Run(folder).history.open() as file:
        return list(csv.reader(file))


def fit(folder, *callbacks, **options):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        default_root_dir=folder,
        callbacks=[HistoryWriter(), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    torch.manual_seed(0)
    trainer.fit(small_module(), datamodule=FewDigits(batch_size=7), **options)


@pytest.mark.filterwarnings("ignore")
def test_training_loss_of_an_epoch_is_without_the_penalty(tmp_path, capsys):
    losses, penalties = [], []

    class Logged(Callback):
        def on_train_batch_end(self, trainer, *_):
            losses.append(float(trainer.callback_metrics["train/loss"]))
            penalties.append(float(trainer.callback_metrics["train/penalty"]))

    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[HistoryWriter(), Lines(), Logged()],
        accumulate_grad_batches=2, enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.run = Run(tmp_path)
    trainer.fit(small_module(penalty={"kind": "l2", "strength": 1.0}), datamodule=FewDigits(batch_size=7))
    (row,) = read_history(Run(tmp_path).history)
    assert min(penalties) > 1.0
    assert row["train/loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert f"train/loss {row['train/loss']:.4f}" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_table_of_a_run_that_was_interrupted_is_that_of_an_uninterrupted_one(tmp_path):
    steps = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path / "whole", steps)
    whole = rows_of(tmp_path / "whole")
    assert [row[:2] for row in whole] == [["epoch", "step"], ["0", "3"], ["1", "6"], ["2", "9"]]
    for step in (1, 3, 4, 6, 8, 9):
        killed = Run(tmp_path / f"killed{step}")
        killed.folder.mkdir()
        killed.history.write_text(Run(tmp_path / "whole").history.read_text())  # with rows that come again
        fit(killed.folder, ModelCheckpoint(killed.checkpoints), ckpt_path=tmp_path / "steps" / f"step={step}.ckpt")
        assert rows_of(killed.folder) == whole, step


def test_run_writes_its_history_and_the_metrics_of_its_best_checkpoint(run):
    run(*FIT, "--trainer.max_epochs", 3, "--trainer.check_val_every_n_epoch", 2, "--model.lr", 0.001)
    rows = read_history(RUN.history)
    columns = ["epoch", "step", "lr/head", "lr/dense", "lr/conv", "train/loss", "train/acc", "val/loss", "val/acc"]
    assert list(rows[0])[: len(columns)] == columns
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["val/acc"] is None for row in rows] == [True, False, True]  # of epochs without a validation
    best = torch.load(RUN.checkpoint("best"), weights_only=True)
    written = json.loads(RUN.metrics.read_text())
    assert written["val"] == {
        "checkpoint": "checkpoints/best.ckpt",
        "split": "val",
        "images": 300,
        **{name: value for name, value in rows[best["epoch"]].items() if name.startswith("val/")},
    }


@pytest.mark.long
def test_evaluations_write_their_metrics_to_the_run_of_the_checkpoint(run):
    run(*FIT, "--trainer.max_epochs", 1)
    before = RUN.history.read_bytes()
    for command in ("validate", "test"):
        run(command, "--config", RUN.config, "--ckpt_path", RUN.last)
        run(command, "--config", RUN.config, "--ckpt_path", RUN.checkpoint("best"))
    written = json.loads(RUN.metrics.read_text())
    for name in ("val", "test", "val_last", "test_last"):
        split, _, other = name.partition("_")
        assert list(written[name])[:5] == ["checkpoint", "split", "images", f"{split}/loss", f"{split}/acc"]
        assert written[name]["checkpoint"] == f"checkpoints/{other or 'best'}.ckpt"
        assert RUN.result_table("predictions", name).is_file()
    assert RUN.history.read_bytes() == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("resumed", [False, True])
def test_results_of_an_earlier_fit_end_with_the_next_one_in_the_folder(tmp_path, capsys, resumed):
    run = Run(tmp_path)
    last = ModelCheckpoint(run.checkpoints, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    fit(tmp_path, last)
    names = ("val", "test", "test_last")
    for name in names:
        write_metrics(run, name, {"images": 3}, run.last)
        for kind in RESULT_TABLES:
            run.result_table(kind, name).touch()
    own = [run.result_table("predictions", name) for name in ("calibration", "mine", "refit")]
    for file in (*own, run.report):
        file.touch()
    write_calibration(run, {"temperature": 2.0})
    write_refit(run, {"images": 3}, run.last)
    history, seen = run.history.read_bytes(), []
    watch = LambdaCallback(on_train_epoch_start=lambda *_: seen.append(run.metrics.exists()))
    fit(tmp_path, last, watch, **({"ckpt_path": run.last} if resumed else {}))  # after its last epoch
    assert seen == ([] if resumed else [False] * 3)  # as a kill may come at any time
    assert json.loads(run.metrics.read_text()).keys() == {"val"}
    assert "images" in json.loads(run.metrics.read_text())["val"]
    assert [file.name for file in sorted(tmp_path.glob("[!.]*.*"))] == [
        "history.csv", "metrics.json", *(file.name for file in own)
    ]  # fmt: skip
    assert run.history.read_bytes() == history
    assert capsys.readouterr().out.count("with its tables and report, which are of an earlier fit") == 1


@pytest.mark.parametrize("command", [("fit", "--trainer.fast_dev_run", "true"), ("plan",)])
def test_nothing_is_written_without_a_run(run, command):
    run(*command, "--unfreeze.strategy", "full")
    assert not list(Path().rglob("history.csv")) + list(Path().rglob("metrics.json"))


def test_metrics_and_losses_are_reduced_on_every_rank():
    class OtherRank:
        is_global_zero, optimizers, num_read, world_size, accumulate_grad_batches = False, (), 0, 2, 1
        strategy = SimpleNamespace(root_device="cpu", reduce=lambda sums, reduce_op: reduced.append(sums) or sums)

        @property
        def callback_metrics(self):
            self.num_read += 1
            return {}

    trainer, reduced = OtherRank(), []
    HistoryWriter().on_train_epoch_end(trainer, None)
    assert (trainer.num_read, len(reduced)) == (1, 1)
