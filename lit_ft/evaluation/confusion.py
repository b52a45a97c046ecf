"""Confusion matrix of a validation, as a picture."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from lit_ft.evaluation.figure_names import prepare_names
from lit_ft.evaluation.tensorboard import log_figure

INTERVAL_SECONDS = 10.0
"""Least time between two pictures, as drawing one takes longer than a whole epoch of a small head."""

MAX_NUMBERED_CLASSES = 30
"""Largest number of classes for which cells have their counts."""


class ConfusionPicture:
    """The validation confusion matrix of a fit: counted in each validation, drawn at most every 10 seconds.

    Args:
        num_classes: Number of classes.
        device: Device of the logits.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._metric = MulticlassConfusionMatrix(num_classes).to(device)
        self._drawn = -math.inf
        self._pending: tuple[torch.Tensor, int] | None = None  # a matrix that is not drawn, and its step

    def update(self, outputs: Any) -> None:
        """Counts a batch, if its step returns logits as the module's own does."""
        if isinstance(outputs, Mapping) and "logits" in outputs:
            self._metric.update(outputs["logits"], outputs["targets"])

    def end_epoch(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Computes the matrix of a validation, and draws it if the last picture is old enough."""
        if not trainer.strategy.reduce_boolean_decision(self._metric.update_called, all=False):
            return
        self._pending = (self._metric.compute(), trainer.global_step)  # asks all ranks
        self._metric.reset()
        if time.monotonic() - self._drawn >= INTERVAL_SECONDS:
            self.draw(trainer, module)

    def draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Logs the picture of the last matrix, unless that is done."""
        if self._pending is None:
            return
        (matrix, step), names = self._pending, cast(Any, module).class_names
        if log_figure(trainer, "val/confusion_matrix", lambda: draw_confusion(matrix.cpu(), names), step):
            self._pending, self._drawn = None, time.monotonic()


def draw_confusion(matrix: torch.Tensor, names: list[str]) -> Any:
    """A picture of a confusion matrix ``(K, K)``: rows are true classes, shaded by their share.

    Args:
        matrix: Counts, true class by predicted class.
        names: The names of the classes.
    """
    from matplotlib.figure import Figure

    num = len(names)
    side = max(4.0, min(16.0, 0.35 * num + 2.0))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    drawable = prepare_names(names)
    axes.set_xlabel(f"predicted{drawable.note}")
    axes.set_ylabel("true")
    size = 8 if num <= MAX_NUMBERED_CLASSES else 5
    axes.set_xticks(range(num), drawable.labels, rotation=90, fontsize=size, **drawable.style)
    axes.set_yticks(range(num), drawable.labels, fontsize=size, **drawable.style)
    for i, j in matrix.nonzero().tolist() if num <= MAX_NUMBERED_CLASSES else ():
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=6, color=color)
    return figure
