"""A validation of a trainer that is no part of its run, and the loss of each image in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.features.shared_prefix import SharedPrefix


@contextmanager
def quiet_validation(trainer: Any, *callbacks: Callback) -> Iterator[None]:
    """A trainer whose callbacks neither write nor draw a validation that is no part of the run, but for some others."""
    before, loggers = trainer.callbacks, trainer.loggers
    trainer.callbacks = [*callbacks, *([trainer.progress_bar_callback] if trainer.progress_bar_callback else [])]
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = before, loggers


class ImageLosses(Callback):
    """Takes the loss of each image of a validation, in the order of its loader.

    Args:
        prefix: What gives the images of each validation.
    """

    def __init__(self, prefix: SharedPrefix) -> None:
        self._prefix = prefix
        self._losses: list[Tensor] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets those of the validation before."""
        self._losses = []
        self._prefix.replace_images()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes the losses of a batch."""
        if isinstance(outputs, Mapping) and {"logits", "targets"} <= outputs.keys():
            task = cast(Any, pl_module).task
            self._losses.append(task.image_losses(outputs["logits"], outputs["targets"]).cpu())

    def gather(self, trainer: L.Trainer) -> Tensor | None:
        """The losses ``(N,)`` of all processes; None where there are none."""
        parts: list[Any] = [self._losses]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._losses)
        found = [losses for part in parts for losses in part]
        return torch.cat(found) if found else None
