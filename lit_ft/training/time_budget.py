"""Callback that measures what the time of a fine-tuning goes to, and notes on what it ran."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

import lightning as L
import torch

from lit_ft.data.modules.base import ImageDataModule
from lit_ft.runs import find_run
from lit_ft.training.metrics_file import write_run_facts
from lit_ft.training.selected import SelectionListener, ValidationOutputs

_LIBRARIES = ("lit_ft", "torch", "torchvision", "lightning")


class TimeBudget(SelectionListener):
    """Writes the seconds of a fit, and of what follows it, to ``metrics.json``, with the versions and the device.

    Of ``seconds``, ``start`` is what comes before the first epoch: reading of the data, and the solved head with its
    features. ``data`` is the time in which training waited for batches, and that in which features are cached.
    ``choice`` is the selection and the calibration with their validations, ``refit`` a second fit, before the test or
    after it. A GPU computes while the next batch is awaited, and ``data`` is what that takes longer. A run that is
    resumed has the seconds of its last part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def _add(self, name: str) -> None:
        """Counts the time since the last event for a part."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Starts the clock of a fit."""
        if stage == "fit":
            self.seconds, self._last = {}, time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first epoch begins."""
        self._add("start")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch has come."""
        self._add("data")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is done."""
        self._add("training")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What comes before a validation belongs to training, or to the start."""
        self._add("start" if trainer.sanity_checking else "training")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A validation is done."""
        self._add("start" if trainer.sanity_checking else "validation")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the seconds of the fit."""
        self._add("training" if "training" in self.seconds else "start")
        self._write(trainer)

    def on_selected(
        self, trainer: L.Trainer, pl_module: L.LightningModule, share: float, outputs: ValidationOutputs | None
    ) -> None:
        """Adds those of the choice."""
        self._add("choice")
        self._write(trainer)

    def on_refitted(self, trainer: L.Trainer) -> None:
        """Adds those of the refit."""
        self._add("refit")
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds those of the test, if it followed a fit."""
        if self.seconds:
            self._add("test")
            self._write(trainer)

    def _write(self, trainer: Any) -> None:
        run = find_run(trainer)
        if run is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type
        versions = {"python": platform.python_version(), **{library: version(library) for library in _LIBRARIES}}
        facts = {"device": f"{trainer.world_size} x {name}", "versions": versions}
        seconds = {part: round(value, 3) for part, value in self.seconds.items()}
        data = getattr(trainer, "datamodule", None)
        images = {"images": data.sizes()} if isinstance(data, ImageDataModule) else {}
        write_run_facts(run, {"seconds": seconds, **images, **facts})
