"""Scalars, texts and pictures that a run logs to TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid

from lit_ft.backbones.backbone import StageOutput
from lit_ft.evaluation.plan_figure import draw_plan
from lit_ft.runs import find_best_callback
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.view import run_plan, run_starts, stage_rates


def find_board(trainer: L.Trainer) -> Any:
    """The writer of the TensorBoard logger on the first process, or ``None``."""
    if not trainer.is_global_zero:
        return None
    return next((log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)


def log_figure(trainer: L.Trainer, tag: str, draw: Callable[[], Any], step: int) -> bool:
    """Logs a figure, which is drawn only if there is a board; returns whether there is one."""
    board = find_board(trainer)
    if board:
        board.add_figure(tag, draw(), step)
    return bool(board)


def log_plan(trainer: L.Trainer, module: L.LightningModule, epoch: int) -> None:
    """Logs the picture of the plan, with the phases that have begun by an epoch at their actual start."""

    def draw() -> Any:
        starts, rates = run_starts(trainer, module, epoch), stage_rates(trainer, initial=True)
        return draw_plan(run_plan(trainer, module), starts, run_epochs(trainer), rates)

    log_figure(trainer, "plan", draw, trainer.global_step)


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

    Args:
        trainer: The trainer.
        module: The model.
        batch: The batch; only a pair of uint8 images and targets has a picture.
        num_images: Largest number of images.
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
        board.add_image("train/images", make_grid(images[:num_images].cpu(), pad_value=255), 0)


def log_best_score(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Logs the best score with the hyperparameters.

    At the end of a fit only, as TensorBoard shows the first score that comes with them.
    """
    best = getattr(find_best_callback(trainer), "best_model_score", None)
    for logger in trainer.loggers:
        if best is not None and isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(module.hparams), {"hp_metric": float(best)})
