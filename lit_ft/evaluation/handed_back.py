"""Logs of the model that a fit hands back: its metrics, confusion matrix, worst mistakes, and features of images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_ft.data.modules.base import ImageDataModule
from lit_ft.evaluation.figures import draw_confusion, draw_images
from lit_ft.evaluation.loggers import find_board, log_picture, log_scalars, takes_pictures
from lit_ft.evaluation.pictures import caption, point, read_images, read_sprites
from lit_ft.evaluation.tensorboard import BEST, write_projector
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.probes.feature_pass import compute_stage_features
from lit_ft.runs import find_best_path
from lit_ft.tasks.task import Task
from lit_ft.training.selected import MAX_FEATURES, MAX_LOGITS, ValidationOutputs

MAX_MISTAKES = 24
MAX_PICTURED = 100
"""Classes of a confusion matrix."""


def log_handed_back(
    trainer: Any, module: Any, outputs: ValidationOutputs, confusion_matrix: bool, projector_images: int
) -> None:
    """Logs what is known of the model that is handed back, on the first process."""
    step, data = trainer.global_step, trainer.datamodule
    main = module.main_metric[0]
    scores = {f"{BEST}/{name[4:]}": outputs.metrics[name] for name in ("val/loss", main) if name in outputs.metrics}
    log_scalars(trainer, scores, step)
    images = data if isinstance(data, ImageDataModule) and len(outputs.targets) == data.sizes()["val"] else None
    if takes_pictures(trainer):
        if confusion_matrix:
            log_confusion(trainer, module, outputs, "model that is handed back", step)
        if images is not None and (rows := worst_mistakes(outputs, module.task)).numel():
            captions = [caption(outputs, row, module) for row in rows.tolist()]
            drawn = draw_images(read_images(images, rows), captions)
            log_picture(trainer, "val/worst_mistakes", drawn, step, has_photos=True)
    board = find_board(trainer)
    if board and outputs.features is not None and projector_images:
        every = math.ceil(len(outputs.rows) / projector_images)
        rows, features = outputs.rows[::every], outputs.features[::every]
        table = [["class", "predicted", "right"], *(point(outputs, row, module) for row in rows.tolist())]
        sprites = None if images is None else read_sprites(images, rows)
        write_projector(Path(board.get_logdir()), features, table, sprites)
    for one in trainer.loggers:
        one.save()  # the end of the fit, at which Lightning does it, was before
    if board:
        board.flush()  # which the logger does not do each time


def log_confusion(trainer: L.Trainer, module: Any, outputs: ValidationOutputs, title: str, step: int) -> None:
    """Logs the confusion matrix of classes, if these are not too many."""
    num = len(module.class_names)
    if module.task.name == "multiclass" and num <= MAX_PICTURED:
        pairs = outputs.targets.long() * num + outputs.logits.argmax(dim=1)
        matrix = torch.bincount(pairs, minlength=num * num).view(num, num)
        title = f"{title}\n{len(pairs):,} validation images"
        log_picture(trainer, "val/confusion_matrix", draw_confusion(matrix, module.class_names, title), step)


def predict_again(trainer: Any, module: Any) -> ValidationOutputs | None:
    """What the best checkpoint gives for the validation images, where no validation of this process was of it.

    So it is with a linear probe, whose features are kept, and in a run that is resumed after its best epoch.
    """
    path, data = find_best_path(trainer), trainer.datamodule
    if path is None or not isinstance(data, ImageDataModule) or trainer.world_size > 1:
        return None
    if data.sizes()["val"] * len(module.class_names) > MAX_LOGITS:
        return None
    before = {name: value.clone() for name, value in module.state_dict().items()}
    was_training = module.training
    module.load_state_dict(read_checkpoint(path)["state_dict"])
    module.eval()
    try:
        source = data.source("val", augment=False)
        features = compute_stage_features(
            module.backbone, module.normalise, source, data.batch_size, only_last=True
        ).last
        with torch.inference_mode():
            device = module.device
            logits = torch.cat([module.head(part.to(device)).cpu() for part in torch.split(features, 1024)])
    finally:
        module.load_state_dict(before)
        module.train(was_training)
    task, targets = module.task, data.splits["val"].targets
    metrics = task.metrics("val/")
    task.update(metrics, logits, targets)
    values = {name: float(value) for name, value in metrics.compute().items()}
    values["val/loss"] = float(task.evaluation_loss(logits, targets))
    rows = torch.arange(0, len(features), math.ceil(len(features) / MAX_FEATURES))
    return ValidationOutputs(logits, task.hard(targets), features[rows], rows, values)


def worst_mistakes(outputs: ValidationOutputs, task: Task) -> Tensor:
    """The rows of the images with the greatest losses; of classes only of those that are not recognised."""
    losses = task.image_losses(outputs.logits, outputs.targets).nan_to_num(nan=torch.inf)
    wrong = torch.arange(len(losses))
    if task.name == "multiclass":
        wrong = wrong[outputs.logits.argmax(dim=1) != outputs.targets]
    return wrong[losses[wrong].argsort(descending=True, stable=True)[:MAX_MISTAKES]]
