"""Logits, targets and losses of the images of an evaluation, for tables, intervals and the selection."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.features.shared_prefix import SharedPrefix
from lit_ft.model.module import FineTuneModule

Outputs = Sequence[tuple[Tensor, Tensor]]
"""Logits ``(B, K)`` and targets of each batch, as metrics count these, of one process."""


@dataclass(frozen=True)
class Evaluated:
    """The images of an evaluation, in the order of the data.

    Args:
        logits: ``(N, K)``.
        targets: As metrics count them: classes ``(N,)``, labels or numbers ``(N, K)``.
        names: The path of each image, or its index.
    """

    logits: Tensor
    targets: Tensor
    names: Sequence[str]


class EvaluationOutputs(Callback):
    """Takes what the module's step gives for the images of a test, or of a validation that is no part of a fit."""

    def __init__(self) -> None:
        self.outputs: list[tuple[Tensor, Tensor]] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier evaluation."""
        self.outputs = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise."""
        self.on_test_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes the outputs of a batch, if they are of the module's task."""
        if not isinstance(pl_module, FineTuneModule) or not isinstance(outputs, Mapping):
            return
        logits, targets = (cast(Tensor, outputs.get(name)) for name in ("logits", "targets"))
        if are_of_task(pl_module, logits, targets):
            self.take(pl_module, logits.detach(), targets.detach())

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Likewise."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def take(self, module: FineTuneModule, logits: Tensor, targets: Tensor) -> None:
        """Keeps logits ``(B, K)`` and targets of a batch, as metrics count these."""
        self.outputs.append((logits.cpu(), targets.cpu()))


class ImageLosses(EvaluationOutputs):
    """Takes the loss of each image of a validation, in the order of its loader.

    Args:
        prefix: What gives the images of each validation.
    """

    def __init__(self, prefix: SharedPrefix) -> None:
        super().__init__()
        self._prefix = prefix
        self._losses: list[Tensor] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets those of the validation before."""
        self._losses = []
        self._prefix.replace_images()

    def take(self, module: FineTuneModule, logits: Tensor, targets: Tensor) -> None:
        """Keeps the losses of a batch."""
        self._losses.append(module.task.image_losses(logits, targets).cpu())

    def gather(self, trainer: L.Trainer) -> Tensor | None:
        """The losses ``(N,)`` of all processes; None where there are none."""
        found = [losses for part in gather(trainer, self._losses) for losses in part]
        return torch.cat(found) if found else None


@contextmanager
def quiet_validation(trainer: Any, callback: Callback) -> Iterator[None]:
    """A trainer whose callbacks neither write nor draw a validation that is no part of the run, but for another one."""
    before, loggers = trainer.callbacks, trainer.loggers
    trainer.callbacks = [callback, *([trainer.progress_bar_callback] if trainer.progress_bar_callback else [])]
    trainer.loggers = []
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = before, loggers


def gather(trainer: Any, own: Any) -> list[Any]:
    """What each process has, in the order of their ranks."""
    parts: list[Any] = [own]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, own)
    return parts


def join(parts: Sequence[Outputs], data: Any, split: Split) -> Evaluated | None:
    """The images of all processes, each of which has every so-manieth; None where it is not known which it has."""
    if not all(parts):
        return None
    outputs = [[torch.cat(values) for values in zip(*part, strict=True)] for part in parts]
    num = sum(len(logits) for logits, _ in outputs)
    if len(parts) > 1 and num != count_images(data, split):  # repeated, or limited
        return None
    logits, targets = (interleave(values) for values in zip(*outputs, strict=True))
    return Evaluated(logits, targets, name_images(data, split, num))


def interleave(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all processes in the order of the data, of which each process has every so-manieth.

    >>> interleave([torch.tensor([0, 2, 4]), torch.tensor([1, 3])])
    tensor([0, 1, 2, 3, 4])
    """
    num = sum(map(len, parts))
    order = torch.cat([torch.arange(rank, num, len(parts))[: len(part)] for rank, part in enumerate(parts)])
    return torch.cat(list(parts))[order.argsort()]


def name_images(data: Any, split: Split, num: int) -> list[str]:
    """The paths of the images of a split, or their indices."""
    images = find_images(data, split)
    if not isinstance(images, FileSplit):
        return [str(row) for row in range(num)]
    return [os.path.abspath(images.paths.full(row)) for row in range(num)]  # as tables are read from other folders


def count_images(data: Any, split: Split) -> int | None:
    """The number of images of a split, as far as it is known."""
    images = find_images(data, split)
    return None if images is None else len(images)


def find_images(data: Any, split: Split) -> Any:
    """The images of a split, as far as they are of a data module of lit_ft; without test images those of validation."""
    if not isinstance(data, ImageDataModule):
        return None
    return data.splits.get(data.tested if split == "test" else split)


def are_of_task(module: FineTuneModule, logits: Any, targets: Any) -> bool:
    """Whether these are what the task of a module has: a step of the user's own may give soft targets, or none."""
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        return False
    if logits.ndim != 2 or logits.shape[1] != len(module.class_names):
        return False
    if module.task.name == "multiclass":
        return targets.shape == logits.shape[:1] and not targets.is_floating_point()
    return targets.numel() == logits.numel()
