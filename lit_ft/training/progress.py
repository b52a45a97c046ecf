"""Progress of a run: a bar in a terminal, a line an epoch in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from torch import Tensor

from lit_ft.console import format_duration, format_value, is_notebook, rank_zero_print
from lit_ft.runs import find_best_callback

REFRESH_SECONDS = 0.5


@dataclass
class RunningLoss:
    """The mean of the training losses so far in an epoch, on the device where these are, so that no step waits.

    It is of this process alone until `gather` is called.
    """

    total: Any = 0.0
    num_steps: int = 0
    is_of_all: bool = False

    def add(self, outputs: Any, penalty: Tensor | None = None) -> None:
        """Adds the loss of a training step, if it gave one, without the penalty in it."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            loss = outputs["loss"] if penalty is None else outputs["loss"] - penalty
            self.total, self.num_steps = self.total + loss, self.num_steps + 1

    def gather(self, trainer: Any) -> None:
        """Adds the losses of the other processes, all of which must ask, at the end of an epoch."""
        if trainer.world_size > 1 and not self.is_of_all:
            device = trainer.strategy.root_device
            sums = torch.tensor([float(self.total), self.num_steps], dtype=torch.float64, device=device)
            self.total, num_steps = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
            self.num_steps = round(num_steps)
        self.is_of_all = True

    def compute(self, accumulate_grad_batches: int) -> float | None:
        """The mean; none without a loss. Lightning has divided each by the number of batches of an optimizer step."""
        return float(self.total) / self.num_steps * accumulate_grad_batches if self.num_steps else None


def find_penalty(trainer: Any, module: Any) -> Tensor | None:
    """The penalty on the weights in the loss of the last step, as Lightning has divided that; None without one."""
    penalty: Tensor | None = getattr(getattr(module, "objective", None), "last_penalty", None)
    return None if penalty is None else penalty / trainer.accumulate_grad_batches


def read_new_metrics(now: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics that were logged since an earlier look: Lightning keeps the others, such as of an earlier validation.

    A value that was logged again is another tensor.
    """
    pointers = {name: value.data_ptr() for name, value in earlier.items()}
    return {name: float(value) for name, value in now.items() if value.data_ptr() != pointers.get(name)}


def estimate_left(epochs_left: int, share: float, seconds: float, last: float | None) -> float:
    """Seconds until a fit has had all its epochs, if each takes as long as the last one that is done.

    Args:
        epochs_left: Number of epochs after this one.
        share: Share of this epoch that is done, above 0.
        seconds: Seconds since it began.
        last: Seconds of the epoch before; None in the first, which then takes as long as its beginning suggests.

    >>> estimate_left(2, share=0.5, seconds=3.0, last=10.0), estimate_left(2, share=0.5, seconds=3.0, last=None)
    (27.0, 15.0)
    """
    whole = seconds / share if last is None or share == 1 else max(seconds, last)
    return whole - seconds + epochs_left * whole


def is_better(score: float, best: float, mode: str) -> bool:
    """Whether a score is better than the best so far, whose ``min`` or ``max`` is best.

    >>> is_better(0.5, 0.6, "min"), is_better(0.6, 0.6, "max")
    (True, False)
    """
    return score < best if mode == "min" else score > best


class _EpochDisplay(ProgressBar):
    """What a bar and a line have in common: clock, mean training loss, and the line of an epoch."""

    fetches = ("train/loss",)
    """Metrics that are computed when something is drawn, so that Lightning need not fetch them at each step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loss = RunningLoss()
        self._began = time.monotonic()
        self._last: float | None = None  # seconds of the epoch before
        self._earlier: dict[str, Tensor] = {}
        self._score: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began, self._last = time.monotonic(), None
        self._look_back(trainer)  # as a run that is resumed within an epoch begins none

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._loss, self._began = RunningLoss(), time.monotonic()
        self._look_back(trainer)

    def _look_back(self, trainer: L.Trainer) -> None:
        """Notes what there was before an epoch, for its line to tell what is new, and better."""
        self._earlier = dict(trainer.callback_metrics)
        self._score = getattr(find_best_callback(trainer), "best_model_score", None)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(outputs, find_penalty(trainer, pl_module))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics, without the number of the run, which is printed at its end."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if (mean := self._loss.compute(trainer.accumulate_grad_batches)) is not None:
            metrics = {"train/loss": mean, **metrics}
        return metrics

    def _format_epoch(self, trainer: Any, metrics: Mapping[str, Any], what: str) -> str:
        """The line of an epoch: its metrics and seconds."""
        old = self._earlier.keys() - self._new(trainer).keys() - {"train/loss"}  # such as of an earlier validation
        values = "  ".join(f"{name} {format_value(float(value))}" for name, value in metrics.items() if name not in old)
        # Counted from 0, as in the plan, in TensorBoard and in Lightning's bar.
        return f"epoch {_format_number(trainer)} {what}  {values}  {time.monotonic() - self._began:.1f} s"

    def _state(self, trainer: L.Trainer) -> str:
        """Whether an epoch that is done is better than those before; its checkpoint may not be written yet."""
        best = find_best_callback(trainer)
        score = None if best is None else self._new(trainer).get(best.monitor)
        if score is None or math.isnan(score):
            return "done"
        return "best" if self._score is None or is_better(score, float(self._score), best.mode) else "done"

    def _new(self, trainer: L.Trainer) -> dict[str, float]:
        return read_new_metrics(trainer.callback_metrics, self._earlier)

    def _estimate_left(self, trainer: Any, share: float) -> float | None:
        """Seconds until the end of the fit; None where it has no known end."""
        if trainer.max_epochs in (None, -1) or not 0 < share <= 1:
            return None
        epochs_left = trainer.max_epochs - 1 - trainer.current_epoch
        return estimate_left(epochs_left, share, time.monotonic() - self._began, self._last)


def _format_number(trainer: Any) -> str:
    """The number of an epoch, and of the last one."""
    last = trainer.max_epochs - 1 if trainer.max_epochs not in (None, -1) else "…"
    return f"{trainer.current_epoch}/{last}"


class Bar(_EpochDisplay, TQDMProgressBar):
    """A bar, drawn twice a second, with the time that is left; it leaves a line for each finished epoch.

    Lightning draws it every so many steps: with each of a small network's it would take longer than the step, and on a
    GPU each step would wait until the metrics that it shows are known.
    """

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{rate_noinv_fmt}{postfix}]"

    def __init__(self) -> None:
        super().__init__()
        self._drawn = -math.inf
        self._share = 0.0

    def init_train_tqdm(self) -> Any:
        """Lightning's bar, which vanishes in the end."""
        return _vanishing(super().init_train_tqdm())

    def init_validation_tqdm(self) -> Any:
        """Likewise."""
        return _vanishing(super().init_validation_tqdm())

    def init_test_tqdm(self) -> Any:
        """Likewise."""
        return _vanishing(super().init_test_tqdm())

    def init_predict_tqdm(self) -> Any:
        """Likewise."""
        return _vanishing(super().init_predict_tqdm())

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins a bar."""
        super().on_train_epoch_start(trainer, pl_module)
        self.train_progress_bar.set_description(f"Epoch {_format_number(trainer)}", refresh=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws the bar if it is due."""
        self._share = (batch_idx + 1) / trainer.num_training_batches
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the line of the epoch above the bar."""
        self._loss.gather(trainer)
        metrics = super().get_metrics(trainer, pl_module)  # on all ranks, which may reduce some
        if self.is_enabled:
            rank_zero_print(self._format_epoch(trainer, metrics, self._state(trainer)))
        self._last = time.monotonic() - self._began

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What the bar has room for."""
        mean = self._loss.compute(trainer.accumulate_grad_batches)
        left = self._estimate_left(trainer, self._share)
        loss = {} if mean is None else {"train/loss": format_value(mean)}
        return loss if left is None else {**loss, "left": format_duration(left)}

    def _should_update(self, current: int, total: float) -> bool:
        now = time.monotonic()
        due = self.is_enabled and (now - self._drawn >= REFRESH_SECONDS or current == total)  # the last always is
        if due:
            self._drawn = now
        return due


def _vanishing(bar: Any) -> Any:
    bar.leave = False
    return bar


class Lines(_EpochDisplay):
    """One line an epoch, and one every minute within it, with the time that is left."""

    is_enabled = True
    """Whether it prints; ``LightningModule.print`` asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = self._began

    def disable(self) -> None:
        """Stops printing, as Lightning asks of all ranks but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        """Prints again."""
        self.is_enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._printed = self._began

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line once a minute."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._printed > 60:
            self._printed = time.monotonic()
            done = batch_idx + 1
            share = done / trainer.num_training_batches
            self._print(trainer, pl_module, f"batch {done}/{trainer.num_training_batches}", share)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the metrics of the epoch."""
        self._loss.gather(trainer)
        self._print(trainer, pl_module, self._state(trainer), share=1.0)
        self._last = time.monotonic() - self._began

    def _print(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str, share: float) -> None:
        if self.is_enabled:
            left = self._estimate_left(trainer, share)
            end = f"  {format_duration(left)} left" if left else ""
            print(self._format_epoch(trainer, self.get_metrics(trainer, pl_module), what) + end, flush=True)


def build_progress_bar() -> ProgressBar:
    """The progress bar for the place where the output goes."""
    return Bar() if sys.stdout.isatty() or is_notebook() else Lines()
