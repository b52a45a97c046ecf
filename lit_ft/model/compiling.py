"""Decides what ``torch.compile`` compiles of a model, and tells how long that takes."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_ft.errors import UserError


class Compiling(Callback):
    """Compiles the backbone and the head of a `FineTuneModule` in place when a fit begins; no name changes.

    Each phase compiles anew, as another part of the network has gradients. That is done within its first step, whose
    time is told.

    Raises:
        UserError: If there is no compiler that torch could use on a CPU.
    """

    backend = "inductor"

    def __init__(self) -> None:
        self._trained: frozenset[str] = frozenset()
        self._began: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compiles, that is, lets the first call of each do it."""
        self._trained = frozenset()
        compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
        if pl_module.device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
            raise UserError("`model.compile`: true needs a C++ compiler, as g++; install one, or leave it out")
        for part in (cast(Any, pl_module).backbone, cast(Any, pl_module).head):
            part.compile(backend=self.backend)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts the clock where other stages train than in the step before."""
        self._began = None
        if batch_idx == 0 or not self._trained:  # as phases begin with epochs
            trained = frozenset(name for name, parameter in pl_module.named_parameters() if parameter.requires_grad)
            if trained != self._trained:
                self._trained, self._began = trained, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tells what the step took."""
        if self._began is not None:
            seconds = time.monotonic() - self._began
            stages = cast(Any, pl_module).stage_modules()
            trained = [name for name, parts in stages.items() if any(_trains(part) for part in parts)]
            trainer.print(f"Compiled to train {', '.join(trained)}: its first step took {seconds:.1f} s", flush=True)


def _trains(part: Any) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
