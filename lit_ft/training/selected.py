"""The model that a fit hands back: what it gave for the validation images, and the callbacks that are told of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.compat import is_compiled
from lit_ft.model.module import FineTuneModule
from lit_ft.training.evaluated import are_of_task, gather, interleave

MAX_LOGITS = 1 << 24
"""Logits that are kept of each validation of a fit; of one with more nothing is."""

MAX_FEATURES = 2000
"""Images whose features are kept, evenly spaced; fewer where these would have more than `MAX_FEATURE_VALUES`."""

MAX_FEATURE_VALUES = 1 << 22


@dataclass(frozen=True)
class ValidationOutputs:
    """What a model gave for the N validation images, in the order of the data, on the CPU.

    Args:
        logits: ``(N, K)``.
        targets: As metrics count them: classes ``(N,)``, labels or numbers ``(N, K)``.
        features: What the head took of n images, ``(n, D)``; None where that is unknown.
        rows: Which these are ``(n,)``.
        metrics: Validation metrics by name.
    """

    logits: Tensor
    targets: Tensor
    features: Tensor | None
    rows: Tensor
    metrics: Mapping[str, float]


class SelectionListener(Callback):
    """A callback that is told which model a fit hands back, and of its refit."""

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

    def on_refitted(self, trainer: L.Trainer) -> None:
        """Called in all processes after a refit.

        Args:
            trainer: The trainer of the fit before it.
        """


def report_selected(
    trainer: Any, module: L.LightningModule, share: float, outputs: ValidationOutputs | None = None
) -> None:
    """Tells the callbacks of a trainer that a fit has ended, and which model it hands back."""
    for callback in trainer.callbacks:
        if isinstance(callback, SelectionListener):
            callback.on_selected(trainer, module, share, outputs)


def report_refitted(trainer: Any) -> None:
    """Tells the callbacks of a trainer that the model that it hands back was fitted again."""
    for callback in trainer.callbacks:
        if isinstance(callback, SelectionListener):
            callback.on_refitted(trainer)


class OutputRecorder(Callback):
    """Keeps the logits, the targets and some features of a validation where they were computed, so that no step waits.

    Args:
        max_features: Number of images whose features are kept.
        max_logits: Number of logits of a process from which nothing is kept.
    """

    def __init__(self, max_features: int = MAX_FEATURES, max_logits: int = MAX_LOGITS) -> None:
        self._max_features = max_features
        self._max_logits = max_logits
        self._hook: Any = None
        self._reset()

    def _reset(self) -> None:
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._features: list[Tensor] = []
        self._rows: list[int] = []  # of these, among the images of this process; empty where it is each
        self._num_logits = self._logits_each = self._num_seen = self._step = 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier validation, and listens to what the head takes."""
        self._reset()
        head = getattr(pl_module, "head", None)
        if head is not None and self._max_features and not is_compiled(pl_module):  # which a hook would compile anew
            self._hook = head.register_forward_pre_hook(lambda _, given: self._note(trainer, given[0]))

    def _note(self, trainer: Any, features: Tensor) -> None:
        if not self._step:  # at the first batch, from which the number of images follows
            if features.ndim != 2:
                return
            most = max(1, min(self._max_features, MAX_FEATURE_VALUES // features.shape[1]))
            num_images = sum(trainer.num_val_batches) * len(features) * trainer.world_size
            self._step = 1 if math.isinf(num_images) else math.ceil(num_images / most)
        if self._step == 1:
            self._features.append(features.clone())  # as a head may change it in place
            return
        first, end = -self._num_seen % self._step, self._num_seen + len(features)
        self._features.append(features[first :: self._step].clone())
        self._rows += range(self._num_seen + first, end, self._step)
        self._num_seen = end

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps a batch, if its step returns logits as the module's own does.

        That these are of its task is asked of the first batch alone, as each look takes long beside a small network.
        """
        if not self._outputs:
            if not _has_logits(pl_module, outputs):
                return
            self._logits_each = outputs["logits"].numel()
        elif self._num_logits > self._max_logits or not isinstance(outputs, dict) or "logits" not in outputs:
            return
        self._num_logits += self._logits_each
        self._outputs.append((outputs["logits"], outputs["targets"]))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens no more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _join_features(self, trainer: Any) -> tuple[Tensor, Tensor] | None:
        """The features of this process, and which images these are of."""
        if not self._features:
            return None
        features = torch.cat(self._features).detach().cpu()
        rows = torch.arange(len(features)) if self._step == 1 else torch.tensor(self._rows)
        return features, rows * trainer.world_size + trainer.global_rank

    def gather(self, trainer: L.Trainer) -> ValidationOutputs | None:
        """What was kept, of all processes, each of which must ask; None where there is nothing, or too much."""
        part = None
        if self._outputs and self._num_logits <= self._max_logits:
            logits, targets = (torch.cat(parts).detach().cpu() for parts in zip(*self._outputs, strict=True))
            part = (logits, targets, self._join_features(trainer))
        parts = gather(trainer, part)
        self._reset()
        if any(part is None for part in parts):
            return None
        logits, targets = (interleave([part[i] for part in parts]) for i in (0, 1))
        found, rows = [part[2] for part in parts], torch.empty(0, dtype=torch.long)
        joined = None
        if all(one is not None for one in found):
            joined, rows = (torch.cat(column) for column in zip(*found, strict=True))
            order = rows.argsort()
            joined, rows = joined[order], rows[order]
        metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        return ValidationOutputs(logits, targets, joined, rows, metrics)


def _has_logits(module: L.LightningModule, outputs: Any) -> bool:
    """Whether a validation step gives logits and targets, for a module of lit_ft those of its task."""
    if not isinstance(outputs, Mapping) or not {"logits", "targets"} <= outputs.keys():
        return False
    return not isinstance(module, FineTuneModule) or are_of_task(module, outputs["logits"], outputs["targets"])
