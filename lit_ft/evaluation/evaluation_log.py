"""Callback that logs the metrics of an evaluation of a checkpoint as what they are of."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_ft.data.loading.protocols import Split
from lit_ft.evaluation.loggers import log_scalars
from lit_ft.evaluation.tensorboard import BEST
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.runs import find_run
from lit_ft.training.metrics_file import read_entries
from lit_ft.training.result_names import name_results


class EvaluationLog(Callback):
    """Logs the metrics of a test or validation of a checkpoint under the name of its results, at the step of that.

    Lightning logs them as ``test/acc`` or ``val/acc`` at step 0: in the folder of a run, those of other images or
    another checkpoint would be taken for the run's own, and those of a validation for the beginning of its curves.
    """

    def __init__(self) -> None:
        self._loggers: list[Any] | None = None

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the loggers from Lightning."""
        if cast(Any, trainer).ckpt_path and not getattr(trainer, "tests_own", False):
            self._loggers, trainer.loggers = trainer.loggers, []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise, unless it is part of a fit."""
        if trainer.state.fn == "validate":
            self.on_test_start(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the metrics; comes after what writes them."""
        self._log(trainer, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise."""
        self._log(trainer, "val")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Gives the loggers back, for Lightning to close them."""
        self._give_back(trainer)

    def _log(self, trainer: L.Trainer, split: Split) -> None:
        if not self._give_back(trainer):
            return
        run = find_run(trainer)
        if run is None or not trainer.is_global_zero:
            return
        name, _ = name_results(trainer, run, split, read_entries(run.metrics))
        group = BEST if name == "val" else name
        metrics = {f"{group}/{key.partition('/')[2]}": float(value) for key, value in trainer.callback_metrics.items()}
        log_scalars(trainer, metrics, read_checkpoint(str(cast(Any, trainer).ckpt_path)).get("global_step", 0))

    def _give_back(self, trainer: L.Trainer) -> bool:
        """Gives back the loggers, and whether there were any to give."""
        if self._loggers is None:
            return False
        trainer.loggers, self._loggers = self._loggers, None
        return True
