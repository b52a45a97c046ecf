"""Callback of a trial: tells the study of each epoch, and ends the trial where that has no prospect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_ft.runs import find_run
from lit_ft.training.history import read_history

if TYPE_CHECKING:
    from optuna import Trial


class TrialWatch(Callback):
    """Reports the validation metric of each epoch to a study, which may end the trial after it.

    The trial then ends as a run of that many epochs does. After its last epoch it is not asked. A trial that is resumed
    reports the epochs before, too, as it is another one to the study.

    Args:
        trial: The trial.
        monitor: The metric.
        show: Is told the metric of each epoch.
    """

    def __init__(self, trial: Trial, monitor: str, show: Callable[[float], object]) -> None:
        self._trial = trial
        self._monitor = monitor
        self._show = show
        self._is_validated = False
        self.is_pruned = False
        """Whether the study has ended the trial."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports the epochs before that of a resumed run."""
        run = find_run(trainer)
        for row in read_history(run.history) if run is not None else ():
            value = row.get(self._monitor)
            if value is not None and cast(int, row["epoch"]) < trainer.current_epoch:
                self._trial.report(value, cast(int, row["epoch"]) + 1)
                self._show(value)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes that there is a new value."""
        self._is_validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reports the value, and ends the trial if the study says so."""
        value = trainer.callback_metrics.get(self._monitor)
        if not self._is_validated or value is None:
            return
        self._is_validated = False
        num_epochs = trainer.current_epoch + 1
        self._trial.report(float(value), num_epochs)
        self._show(float(value))
        is_last = num_epochs == cast(Any, trainer).max_epochs or trainer.should_stop
        if not is_last and self._trial.should_prune():
            self.is_pruned = True
            trainer.should_stop = True
