"""Scalars and pictures that a run logs to TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.transforms.v2.functional import resize
from torchvision.utils import make_grid

from lit_ft.backbones.backbone import StageOutput
from lit_ft.evaluation.figures import draw_confusion, draw_plan
from lit_ft.runs import find_best_callback
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.view import run_plan, run_starts, stage_rates

INTERVAL_SECONDS = 10.0
"""Least time between two confusion matrices, as drawing one takes longer than a whole epoch of a small head."""

PICTURED_SIDE = 112
"""Pixels of the longer side of a pictured image: 32 of 224 pixels take as long as an epoch of a head to compress."""


def find_board(trainer: L.Trainer) -> Any:
    """The writer of the TensorBoard logger on the first process, or ``None``."""
    if not trainer.is_global_zero:
        return None
    return next((log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)


def log_plan(trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
    """Logs the picture of the plan, with the phases that have begun by an epoch at their actual start."""
    if board := find_board(trainer):
        starts, rates = run_starts(trainer, module, epoch), stage_rates(trainer, initial=True)
        figure = draw_plan(run_plan(trainer, module), starts, run_epochs(trainer), rates)
        board.add_figure("plan", figure, trainer.global_step)


def log_rates(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Logs the phase, and the learning rate of each stage, which is 0 while it is frozen."""
    board = find_board(trainer)
    if not board:
        return
    plan = run_plan(trainer, module)
    index = len(run_starts(trainer, module, trainer.current_epoch)) - 1
    board.add_scalar("phase", index, trainer.global_step)
    for stage, rate in stage_rates(trainer).items():
        is_trainable = stage in plan.phases[index].trainable
        board.add_scalar(f"lr/{stage}", rate if is_trainable else 0.0, trainer.global_step)


def log_images(trainer: L.Trainer, module: L.LightningModule, batch: Any, num_images: int) -> None:
    """Logs the first images of a run's first batch as the network gets them: augmented, erased and mixed.

    Only a batch that is a pair of uint8 images and targets has a picture.
    """
    board = find_board(trainer)
    if not board or not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return
    if isinstance(batch[0], StageOutput):
        batch = trainer.strategy.batch_to_device(next(iter(cast(Any, trainer).train_dataloader.of_images())))
    images = batch[0]
    if isinstance(images, torch.Tensor) and images.dtype == torch.uint8:
        if hasattr(module, "pictured"):
            images = cast(Any, module).pictured(batch, 0)
        board.add_image("train/images", make_grid(_shrink(images[:num_images].cpu()), pad_value=255), 0)


def _shrink(images: torch.Tensor) -> torch.Tensor:
    """Images ``(B, C, H, W)`` whose longer side is at most `PICTURED_SIDE`."""
    sides = images.shape[2:]
    most = max(sides)
    return resize(images, [side * PICTURED_SIDE // most for side in sides]) if most > PICTURED_SIDE else images


def log_best_score(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Logs the best score with the hyperparameters.

    At the end of a fit only, as TensorBoard shows the first score that comes with them.
    """
    best = getattr(find_best_callback(trainer), "best_model_score", None)
    for logger in trainer.loggers:
        if best is not None and isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(module.hparams), {"hp_metric": float(best)})


class ConfusionPicture:
    """The validation confusion matrix of a fit: counted in each validation, drawn at most every 10 seconds."""

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
        if self._pending is not None and (board := find_board(trainer)):
            matrix, step = self._pending
            board.add_figure("val/confusion_matrix", draw_confusion(matrix.cpu(), cast(Any, module).class_names), step)
            self._pending, self._drawn = None, time.monotonic()
