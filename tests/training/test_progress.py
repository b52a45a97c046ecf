import contextlib
import io
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from small_runs import FewDigits, small_module, small_trainer

from lit_ft.console import rank_zero_print
from lit_ft.training import progress
from lit_ft.training.progress import Bar, Lines, read_new_metrics


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 5]), (0.17, [1, 4, 5]), (0.6, [1, 2, 3, 4, 5])])
def test_bar_is_drawn_by_time_and_after_the_last_step(monkeypatch, seconds, expected):
    now = [50.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar, drawn = Bar(), []
    for step in range(1, 6):
        if bar._should_update(step, 5):
            drawn.append(step)
        now[0] += seconds
    assert drawn == expected
    bar.disable()
    assert not bar._should_update(5, 5)


class Fetches(Callback):
    """Counts what is fetched from the device between the step and the hooks after it."""

    def __init__(self, monkeypatch):
        self.fetched, self.losses, self.logged = 0, [], []
        item = torch.Tensor.item
        monkeypatch.setattr(torch.Tensor, "item", lambda tensor: self._count() or item(tensor))

    def _count(self):
        self.fetched += self.counts

    counts = False

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.counts = True

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx:
            self.logged.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_start(self, trainer, pl_module):
        self.counts = False


@pytest.mark.parametrize(("bar", "of_each_step"), [(Bar, 0), (Lines, 0), (TQDMProgressBar, 1)])
def test_steps_fetch_nothing_but_for_lightnings_bar(monkeypatch, bar, of_each_step):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 1e9)
    shown, fetches = bar(), Fetches(monkeypatch)
    trainer = small_trainer(1, shown, fetches, enable_progress_bar=True, limit_val_batches=1)
    L.seed_everything(1)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(small_module(), datamodule=FewDigits(batch_size=5))
    assert len(fetches.losses) == 4
    # The loss of each step is there for who asks, logged in full or not.
    assert fetches.logged == fetches.losses[:3]
    assert fetches.fetched >= 4 * of_each_step
    assert of_each_step or fetches.fetched == 0


@pytest.mark.parametrize("together", [1, 2])
def test_lines_tell_the_mean_loss_of_the_epoch_and_the_metrics(together, capsys):
    losses = []

    class Note(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(trainer.callback_metrics["train/loss"]))

    options = {"limit_val_batches": 1, "accumulate_grad_batches": together}
    trainer = small_trainer(2, Lines(), Note(), enable_progress_bar=True, **options)
    trainer.fit(small_module(), datamodule=FewDigits(batch_size=5))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[:3] for line in lines] == [["epoch", "0/1", "done"], ["epoch", "1/1", "done"]]
    assert [line.endswith(" left") for line in lines] == [True, False]
    told = [part.split() for part in lines[1].split("done  ")[1].split("  ")]
    assert [name for name, _ in told] == ["train/loss", "val/loss", "val/acc", lines[1].split()[-2]]
    assert len(losses) == 8
    assert float(told[0][1]) == pytest.approx(sum(losses[4:]) / 4, abs=1e-4)
    assert abs(losses[-1] - sum(losses[4:]) / 4) > 1e-3


def test_module_can_print_beside_the_lines(capsys):
    class Prints(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.print("of the module's own")

    small_trainer(1, Lines(), Prints(), enable_progress_bar=True).fit(small_module(), datamodule=FewDigits())
    assert "\nof the module's own\n" in capsys.readouterr().out


def test_lines_tell_digits_of_small_metrics(monkeypatch, capsys):
    measured = {"train/loss": 0.5, "val/mse": 6.25e-7, "val/mae": 1234.5}
    monkeypatch.setattr(Lines, "get_metrics", lambda *_: measured)
    small_trainer(1, Lines(), enable_progress_bar=True).fit(small_module(), datamodule=FewDigits())
    assert "epoch 0/0 done  train/loss 0.5000  val/mse 6.25e-07  val/mae 1234.5000  " in capsys.readouterr().out


def test_run_resumed_within_an_epoch_has_a_clock_and_a_mean_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 1e6))
    first, second = Lines(), Lines()
    first.on_train_batch_end(None, None, {"loss": torch.tensor(2.0)}, None, 0)  # Lightning begins no epoch then
    assert capsys.readouterr().out == ""
    second.on_train_batch_end(None, None, {"loss": torch.tensor(4.0)}, None, 0)
    trainer = SimpleNamespace(accumulate_grad_batches=1, progress_bar_metrics={}, loggers=[])
    assert second.get_metrics(trainer, None) == {"train/loss": 4.0}


@pytest.mark.parametrize("kind", [Bar, Lines])
def test_line_of_an_epoch_has_the_mean_loss_of_all_processes(kind, capsys):
    other = torch.tensor([9.0, 2.0])  # losses of 4 and 5 in the other process
    trainer = SimpleNamespace(
        world_size=2, strategy=SimpleNamespace(root_device="cpu", reduce=lambda sums, reduce_op: sums + other),
        accumulate_grad_batches=1, progress_bar_metrics={}, callback_metrics={}, loggers=[], max_epochs=1,
        current_epoch=0, checkpoint_callbacks=[],
    )  # fmt: skip
    shown = kind()
    for loss in (1.0, 2.0):
        shown._loss.add({"loss": torch.tensor(loss)})
    shown.on_train_epoch_end(trainer, None)
    assert "train/loss 3.0000" in capsys.readouterr().out
    shown._loss.gather(trainer)  # once is enough
    assert shown._loss.compute(1) == 3.0


def test_metrics_of_earlier_epochs_are_left_out():
    loss, accuracy = torch.tensor(0.5), torch.tensor(0.25)
    earlier = {"train/loss": loss, "val/acc": accuracy}
    now = {"train/loss": loss.clone(), "val/acc": accuracy.detach(), "train/penalty": torch.tensor(1.0)}
    assert read_new_metrics(now, earlier) == {"train/loss": 0.5, "train/penalty": 1.0}


def test_line_of_an_epoch_without_validation_has_none_of_an_earlier_one(capsys):
    trainer = small_trainer(3, Lines(), enable_progress_bar=True, check_val_every_n_epoch=2)
    trainer.fit(small_module(), datamodule=FewDigits())
    lines = [line for line in capsys.readouterr().out.splitlines() if " done " in line]
    assert ["val/loss" in line for line in lines] == [False, True, False]
    assert all("train/loss" in line for line in lines)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_epochs_that_were_best_so_far_are_marked(mode, tmp_path, capsys):
    best = ModelCheckpoint(tmp_path, monitor="val/loss", mode=mode)
    trainer = small_trainer(4, Lines(), best, enable_progress_bar=True, enable_checkpointing=True)
    L.seed_everything(1)
    trainer.fit(small_module(), datamodule=FewDigits())
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    losses = [float(line[line.index("val/loss") + 1]) for line in lines]
    pick = {"min": min, "max": max}[mode]
    assert [line[2] == "best" for line in lines] == [loss == pick(losses[: i + 1]) for i, loss in enumerate(losses)]
    assert {"min": 1, "max": 3}[mode] <= sum(line[2] == "done" for line in lines) + (mode == "min")


def test_epoch_that_is_resumed_within_is_compared_with_the_best_before_the_end(tmp_path, capsys):
    def run(ckpt_path=None):
        best = ModelCheckpoint(tmp_path / "best", monitor="val/loss", mode="max")  # the first, as the loss falls
        steps = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = small_trainer(2, Lines(), best, steps, enable_progress_bar=True, enable_checkpointing=True)
        trainer.fit(small_module(lr=0.05), datamodule=FewDigits(), ckpt_path=ckpt_path)
        lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
        return trainer, [line[1:3] for line in lines]

    trainer, lines = run()
    assert lines == [["0/1", "best"], ["1/1", "done"]]
    within = trainer.global_step // 2 + 1
    assert run(tmp_path / "steps" / f"step={within}.ckpt")[1] == [["1/1", "done"]]


class Terminal(io.StringIO):
    """A terminal, and what it shows in the end."""

    def isatty(self):
        return True

    def lines(self):
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+", self.getvalue()):
            if part == "\r":
                column = 0
            elif part in ("\n", "\x1b[A"):
                row += 1 if part == "\n" else -1
                column = 0 if part == "\n" else column
                lines += [""] * (row + 1 - len(lines))
            else:
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines]


def test_bar_shares_no_line_with_what_is_printed_and_leaves_a_line_an_epoch():
    class Prints(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rank_zero_print(f"batch {batch_idx}")

        def on_validation_start(self, trainer, pl_module):
            if not trainer.sanity_checking:
                rank_zero_print("validates")

    trainer = small_trainer(2, Bar(), Prints(), enable_progress_bar=True, num_sanity_val_steps=1)
    with contextlib.redirect_stdout(Terminal()) as terminal:
        trainer.fit(small_module(), datamodule=FewDigits())
    found = [" ".join(line.split()[:3]) for line in terminal.lines() if line]
    printed = ["batch 0", "batch 1", "validates"]
    assert found == [*printed, "epoch 0/1 done", *printed, "epoch 1/1 done"]


def test_bar_shows_the_mean_loss_and_the_time_that_is_left(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bar = Bar()
    bar._share, now[0] = 0.5, 53.0
    bar._loss.add({"loss": torch.tensor(0.25)})
    trainer = SimpleNamespace(accumulate_grad_batches=1, max_epochs=3, current_epoch=0)
    assert bar.get_metrics(trainer, None) == {"train/loss": "0.2500", "left": "15.0s"}
    trainer.max_epochs = -1
    assert bar.get_metrics(trainer, None) == {"train/loss": "0.2500"}
