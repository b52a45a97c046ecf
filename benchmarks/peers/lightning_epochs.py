"""Decides how a fit by Lightning's trainer is measured."""

from __future__ import annotations

from typing import Any

from job import Clock
from lightning.pytorch.callbacks import Callback


class Epochs(Callback):
    """Tells a clock of each epoch.

    Args:
        clock: The clock.
        metric: The name of the validation accuracy.
    """

    def __init__(self, clock: Clock, metric: str) -> None:
        self._clock = clock
        self._metric = metric

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Validation is over."""
        self._clock.epoch(float(trainer.callback_metrics[self._metric]))
