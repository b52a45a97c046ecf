"""The model that a fit hands back: what it gave for the validation images, and the callbacks that are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.compat import is_compiled

MAX_LOGITS = 1 << 24
"""Logits that are kept of a validation; of one with more nothing is."""

MAX_FEATURES = 2000
"""Images whose features are kept, the first ones; fewer where these would have more than `MAX_FEATURE_VALUES`."""

MAX_FEATURE_VALUES = 1 << 22


@dataclass(frozen=True)
class ValidationOutputs:
    """What a model gave for the N validation images, in the order of the data, on the CPU.

    Args:
        logits: ``(N, K)``.
        targets: As metrics count them: classes ``(N,)``, labels or numbers ``(N, K)``.
        features: What the head took of the first n images, ``(n, D)``; None where that is unknown.
        metrics: Validation metrics by name.
    """

    logits: Tensor
    targets: Tensor
    features: Tensor | None
    metrics: Mapping[str, float]


class SelectionListener(Callback):
    """A callback that is told which model a fit hands back."""

    def on_selected(
        self, trainer: L.Trainer, pl_module: L.LightningModule, share: float, outputs: ValidationOutputs | None
    ) -> None:
        """Called in all processes when the model that is handed back is in its checkpoint, before any test or refit.

        Args:
            trainer: The trainer of the fit.
            pl_module: Its module.
            share: Share of the fine-tuned weights in the model; the rest are those of the linear probe.
            outputs: What the model gave for the validation images, if it was validated after it was chosen.
        """


def report_selected(
    trainer: Any, module: L.LightningModule, share: float, outputs: ValidationOutputs | None = None
) -> None:
    """Tells the callbacks of a trainer that a fit has ended, and which model it hands back."""
    for callback in trainer.callbacks:
        if isinstance(callback, SelectionListener):
            callback.on_selected(trainer, module, share, outputs)


class OutputRecorder(Callback):
    """Keeps the logits, the targets and some features of a validation where they were computed, so that no step waits.

    Args:
        max_features: Number of images whose features are kept.
    """

    def __init__(self, max_features: int = MAX_FEATURES) -> None:
        self._max_features = max_features
        self._hook: Any = None
        self._reset()

    def _reset(self) -> None:
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._features: list[Tensor] = []
        self._num_logits = self._num_features = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier validation, and listens to what the head takes."""
        self._reset()
        head = getattr(pl_module, "head", None)
        if head is not None and self._max_features and not is_compiled(pl_module):  # which a hook would compile anew
            self._hook = head.register_forward_pre_hook(lambda _, given: self._note(given[0]))

    def _note(self, features: Tensor) -> None:
        most = min(self._max_features, MAX_FEATURE_VALUES // max(1, features[0].numel()))
        if features.ndim == 2 and self._num_features < most:
            self._features.append(features[: most - self._num_features].detach())
            self._num_features += len(self._features[-1])

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps a batch, if its step returns logits as the module's own does."""
        if isinstance(outputs, Mapping) and {"logits", "targets"} <= outputs.keys():
            self._num_logits += outputs["logits"].numel()
            self._outputs.append((outputs["logits"].detach(), outputs["targets"]))
            if self._num_logits > MAX_LOGITS:
                self._outputs = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def gather(self, trainer: L.Trainer) -> ValidationOutputs | None:
        """What was kept, of all processes, each of which must ask; None where there is nothing, or too much."""
        part = None
        if self._outputs and self._num_logits <= MAX_LOGITS:
            logits, targets = (torch.cat(parts).cpu() for parts in zip(*self._outputs, strict=True))
            part = (logits, targets, torch.cat(self._features).cpu() if self._features else None)
        parts: list[Any] = [part]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, part)
        self._reset()
        if any(part is None for part in parts):
            return None
        logits, targets = (_interleave([part[i] for part in parts]) for i in (0, 1))
        features = [part[2] for part in parts]
        joined = None if any(one is None for one in features) else _interleave(features)
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        return ValidationOutputs(logits, targets, joined, metrics)


def _interleave(parts: list[Tensor]) -> Tensor:
    """The rows of all processes in the order of the data, of which each process has every so-manieth.

    >>> _interleave([torch.tensor([0, 2, 4]), torch.tensor([1, 3])])
    tensor([0, 1, 2, 3, 4])
    """
    num = sum(map(len, parts))
    order = torch.cat([torch.arange(rank, num, len(parts))[: len(part)] for rank, part in enumerate(parts)])
    return torch.cat(parts)[order.argsort()]
