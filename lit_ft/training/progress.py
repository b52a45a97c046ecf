"""Decides how a run shows that it moves: a bar in a terminal, a line an epoch in a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from lit_ft.console import format_value

REFRESH_SECONDS = 0.5


class _Shows(ProgressBar):
    """What a bar and lines show: the training loss, as the mean of the epoch so far, and the metrics."""

    fetches = ("train/loss",)
    """What is worked out when something is drawn, so that Lightning need not fetch it at each step."""

    _losses: Any = 0.0
    _steps = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins a new mean."""
        super().on_train_epoch_start(trainer, pl_module)
        self._losses, self._steps = 0.0, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a step to it, where the loss is, so that nothing is fetched."""
        if isinstance(outputs, Mapping) and "loss" in outputs:
            self._losses, self._steps = self._losses + outputs["loss"], self._steps + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """The metrics, without the number of the run, which the last screen tells."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if self._steps:
            # Lightning has divided each by the number of batches that a step takes together.
            mean = float(self._losses) / self._steps * trainer.accumulate_grad_batches
            metrics = {"train/loss": mean, **metrics}
        return metrics


class Bar(_Shows, TQDMProgressBar):
    """Lightning's bar, drawn twice a second, of which each finished epoch stays on the screen.

    Lightning draws it every so many steps: with each of a small network's it would take longer than the step, and on a
    GPU each step would wait until the metrics that it shows are known.
    """

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._drawn = -math.inf

    def _should_update(self, current: int, total: float) -> bool:
        """Whether it is time to draw a bar again; the last step of each always is."""
        now = time.monotonic()
        due = self.is_enabled and (now - self._drawn >= REFRESH_SECONDS or current == total)
        if due:
            self._drawn = now
        return due


class Lines(_Shows):
    """One line an epoch, and one every minute within it."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._began = self._spoke = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether it speaks; ``LightningModule.print`` asks for it."""
        return self._enabled

    def disable(self) -> None:
        """Keeps quiet, as Lightning asks of all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Speaks again."""
        self._enabled = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        super().on_train_epoch_start(trainer, pl_module)
        self._began = self._spoke = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Speaks up once a minute."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._spoke > 60:
            self._spoke = time.monotonic()
            self._say(trainer, pl_module, f"batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells the epoch's metrics."""
        self._say(trainer, pl_module, "done")

    def _say(self, trainer: L.Trainer, pl_module: L.LightningModule, what: str) -> None:
        if not self._enabled:
            return
        metrics: dict[str, Any] = self.get_metrics(trainer, pl_module)
        values = "  ".join(f"{name} {format_value(float(value))}" for name, value in metrics.items())
        # Counted from 0, as in the plan, in TensorBoard and in Lightning's bar.
        last = trainer.max_epochs - 1 if trainer.max_epochs not in (None, -1) else "…"
        seconds = time.monotonic() - self._began
        print(f"epoch {trainer.current_epoch}/{last} {what}  {values}  {seconds:.1f} s", flush=True)


def progress_bar() -> ProgressBar:
    """What suits the place where the output goes."""
    return Bar() if sys.stdout.isatty() else Lines()
