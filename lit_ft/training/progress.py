"""Progress of a run: a bar in a terminal, a line an epoch in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from torch import Tensor

from lit_ft.console import format_value

REFRESH_SECONDS = 0.5


@dataclass
class RunningLoss:
    """The mean of the training losses so far in an epoch, on the device where these are, so that no step waits."""

    total: Any = 0.0
    num_steps: int = 0

    def add(self, outputs: Any) -> None:
        """Adds the loss of a training step, if it gave one."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            self.total, self.num_steps = self.total + outputs["loss"], self.num_steps + 1

    def compute(self, accumulate_grad_batches: int) -> float | None:
        """The mean; none without a loss. Lightning has divided each by the number of batches of an optimizer step."""
        return float(self.total) / self.num_steps * accumulate_grad_batches if self.num_steps else None


def read_new_metrics(now: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> dict[str, float]:
    """The metrics that were logged since an earlier look: Lightning keeps the others, such as of an earlier validation.

    A value that was logged again is another tensor.
    """
    pointers = {name: value.data_ptr() for name, value in earlier.items()}
    return {name: float(value) for name, value in now.items() if value.data_ptr() != pointers.get(name)}


class _MetricsDisplay(ProgressBar):
    """Metrics of a bar or a line: the mean training loss of the epoch so far, and what else is logged for it."""

    fetches = ("train/loss",)
    """Metrics that are computed when something is drawn, so that Lightning need not fetch them at each step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._loss = RunningLoss()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._loss = RunningLoss()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss.add(outputs)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics, without the number of the run, which is printed at its end."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if (mean := self._loss.compute(trainer.accumulate_grad_batches)) is not None:
            metrics = {"train/loss": mean, **metrics}
        return metrics


class Bar(_MetricsDisplay, TQDMProgressBar):
    """Lightning's bar, drawn twice a second, of which each finished epoch stays on the screen.

    Lightning draws it every so many steps: with each of a small network's it would take longer than the step, and on a
    GPU each step would wait until the metrics that it shows are known.
    """

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._drawn = -math.inf

    def _should_update(self, current: int, total: float) -> bool:
        now = time.monotonic()
        due = self.is_enabled and (now - self._drawn >= REFRESH_SECONDS or current == total)  # the last always is
        if due:
            self._drawn = now
        return due


class Lines(_MetricsDisplay):
    """One line an epoch, and one every minute within it."""

    is_enabled = True
    """Whether it prints; ``LightningModule.print`` asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._printed = time.monotonic()  # a run that is resumed within an epoch begins none
        self._earlier: dict[str, Tensor] = {}

    def disable(self) -> None:
        """Stops printing, as Lightning asks of all ranks but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        """Prints again."""
        self.is_enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._began = self._printed = time.monotonic()
        self._earlier = dict(trainer.callback_metrics)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Prints a line once a minute."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._printed > 60:
            self._printed = time.monotonic()
            self._print(trainer, pl_module, f"batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the metrics of the epoch."""
        self._print(trainer, pl_module, "done")

    def _print(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str) -> None:
        if not self.is_enabled:
            return
        new = read_new_metrics(trainer.callback_metrics, self._earlier)
        old = self._earlier.keys() - new.keys() - {"train/loss"}  # such as of an earlier validation
        metrics = {name: value for name, value in self.get_metrics(trainer, pl_module).items() if name not in old}
        values = "  ".join(f"{name} {format_value(float(value))}" for name, value in metrics.items())
        # Counted from 0, as in the plan, in TensorBoard and in Lightning's bar.
        last = trainer.max_epochs - 1 if trainer.max_epochs not in (None, -1) else "…"
        seconds = time.monotonic() - self._began
        print(f"epoch {trainer.current_epoch}/{last} {what}  {values}  {seconds:.1f} s", flush=True)


def build_progress_bar() -> ProgressBar:
    """The progress bar for the place where the output goes."""
    return Bar() if sys.stdout.isatty() else Lines()
