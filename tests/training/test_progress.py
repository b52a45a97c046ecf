import contextlib
import io
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from small_runs import FewDigits, small_module, small_trainer

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
