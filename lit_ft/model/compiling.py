"""Compilation of backbone and head in a fit."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lit_ft.compat import is_compiled
from lit_ft.errors import UserError


class Compiling(Callback):
    """Compiles the backbone and the head of a `FineTuneModule` in place when a fit begins; no name changes.

    Each phase compiles anew, as another part of the network has gradients. That is part of its first step, whose time
    is printed.
    """

    backend = "inductor"

    def __init__(self) -> None:
        self._trained: frozenset[str] = frozenset()
        self._began: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks backbone and head, which compile when they are first called."""
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
        """Prints the time of the step."""
        if self._began is not None:
            seconds = time.monotonic() - self._began
            stages = cast(Any, pl_module).stage_modules().items()
            trained = [name for name, parts in stages if any(p.requires_grad for m in parts for p in m.parameters())]
            trainer.print(f"Compiled to train {', '.join(trained)}: its first step took {seconds:.1f} s", flush=True)


@contextmanager
def recompiling(module: Any) -> Iterator[None]:
    """Compiles a compiled `FineTuneModule` anew if other parameters train afterwards."""
    if not is_compiled(module):
        yield
        return
    if module.backbone.gradient_checkpointing and torch.__version__ < "2.15":
        # Seen with 2.8, and not with 2.15; those between were not tried.
        raise UserError(
            f"`model.gradient_checkpointing`: torch {torch.__version__} counts batch norm twice where that is "
            "compiled; leave one out, or use torch 2.15 or newer"
        )
    before = [parameter.requires_grad for parameter in module.parameters()]
    yield
    if before != [parameter.requires_grad for parameter in module.parameters()]:
        # What was compiled for the last phase no longer fits, but would count towards torch's limit of 8 versions, past
        # which all runs uncompiled: a ResNet that is unfrozen stage by stage has 12.
        torch.compiler.reset()
