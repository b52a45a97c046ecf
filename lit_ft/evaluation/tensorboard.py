"""Decides what a person sees of a run: the first screen, and the pictures and curves in TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from lit_ft.backbones.backbone import StageOutput
from lit_ft.console import rank_zero_print
from lit_ft.errors import printable
from lit_ft.evaluation.figure_text import drawable
from lit_ft.evaluation.plan_figure import plan_figure
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_best_callback, find_run
from lit_ft.tasks.classes import classes_of, names_of
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.view import plan_table, run_plan, run_starts, stage_rates

SKIPPED = Run(Path()).skipped_images.name
MAX_PICTURED_CLASSES = 100
MAX_LISTED_LABELS = 100
PICTURE_SECONDS = 10.0

# What a task learns: one of it, and several.
_CALLED = {"multiclass": ("class", "classes"), "multilabel": ("label", "labels"), "regression": ("number", "numbers")}


class RunReport(Callback):
    """Prints the data and the plan when a fit begins, and gives TensorBoard what the module's own logs lack.

    Images that are left out, as they cannot be read, are listed in ``skipped_images.txt`` in the folder of the run.

    That is, for the TensorBoard logger: the plan as text and as a picture, the phase and each stage's learning rate, a
    grid of training images as the network gets them, the validation confusion matrix, and the best score among the
    hyperparameters.

    Args:
        num_images: Training images in the grid; 0 shows none.
        confusion_matrix: Whether to picture the validation confusion matrix, after the first and the last validation
            and at most every 10 seconds between them.
    """

    def __init__(self, num_images: int = 32, confusion_matrix: bool = True) -> None:
        self.num_images = num_images
        self.confusion_matrix = confusion_matrix
        self._confusion: MulticlassConfusionMatrix | None = None
        self._undecided = False
        self._pictured = -math.inf
        self._unpictured: tuple[torch.Tensor, int] | None = None  # a confusion matrix, and the step that it is of

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the first screen and logs it."""
        module = cast(Any, pl_module)
        if isinstance(module, FineTuneModule):
            module.follow_finders()  # else the plan would show the rates of before
        self._undecided = run_plan(trainer, pl_module).undecided
        run = find_run(trainer)
        if trainer.is_global_zero:  # the others would count the arithmetic of the network for nobody
            screen = "\n\n".join([data_table(cast(Any, trainer).datamodule), plan_table(trainer, pl_module)])
            rank_zero_print(f"\n{screen}\n")
            if run and (skipped := _skipped(cast(Any, trainer).datamodule)):
                run.folder.mkdir(parents=True, exist_ok=True)
                run.skipped_images.write_text("\n".join(skipped) + "\n", "utf-8", "surrogateescape")
            if board := _tensorboard(trainer):
                board.add_text("plan", "```\n" + screen + "\n```", 0)
                _picture_plan(trainer, pl_module, trainer.current_epoch)
        if self.confusion_matrix and module.task.name == "multiclass":
            num_classes = len(module.class_names)
            if num_classes <= MAX_PICTURED_CLASSES:
                self._confusion = MulticlassConfusionMatrix(num_classes).to(pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Shows the first images of a run as the network gets them: augmented, erased and mixed."""
        board = _tensorboard(trainer)
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2  # else it is a subclass's own, or refused
        if board and self.num_images and trainer.global_step == 0 and batch_idx == 0 and is_pair:
            if isinstance(batch[0], StageOutput):
                batch = trainer.strategy.batch_to_device(next(iter(cast(Any, trainer).train_dataloader.of_images())))
            images = batch[0]
            if isinstance(images, torch.Tensor) and images.dtype == torch.uint8:
                if hasattr(pl_module, "pictured"):
                    images = cast(Any, pl_module).pictured(batch, batch_idx)
                board.add_image("train/images", make_grid(images[: self.num_images].cpu(), pad_value=255), 0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the phase and the learning rates as the epoch begins."""
        _log_rates(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs them as often as the trainer logs."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            _log_rates(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Counts a batch."""
        told = isinstance(outputs, Mapping) and "logits" in outputs  # by the module's own step
        if self._confusion is not None and told and not trainer.sanity_checking:
            self._confusion.update(outputs["logits"], outputs["targets"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the confusion matrix, unless it has just drawn one."""
        if self._confusion is None or trainer.sanity_checking:
            return
        if not trainer.strategy.reduce_boolean_decision(self._confusion.update_called, all=False):
            return
        self._unpictured = (self._confusion.compute(), trainer.global_step)  # asks all ranks
        self._confusion.reset()
        # To draw takes longer than a whole epoch of a small head.
        if time.monotonic() - self._pictured >= PICTURE_SECONDS:
            self._picture_confusion(trainer, pl_module)

    def _picture_confusion(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._unpictured is not None and (board := _tensorboard(trainer)):
            matrix, step = self._unpictured
            figure = confusion_figure(matrix.cpu(), cast(Any, pl_module).class_names)
            board.add_figure("val/confusion_matrix", figure, step)
            self._unpictured, self._pictured = None, time.monotonic()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the best score beside the hyperparameters, and draws what is not drawn: the last, and a decided plan."""
        self._picture_confusion(trainer, pl_module)
        plan = run_plan(trainer, pl_module)
        if _tensorboard(trainer) and (self._undecided or any(phase.plateau for phase in plan.phases)):
            _picture_plan(trainer, pl_module, max(0, trainer.current_epoch - 1))
        best = getattr(find_best_callback(trainer), "best_model_score", None)
        for logger in trainer.loggers:
            if best is not None and isinstance(logger, TensorBoardLogger):
                # Now, and not at the start: TensorBoard shows the first score that comes with them.
                logger.log_hyperparams(dict(pl_module.hparams), {"hp_metric": float(best)})


def data_table(data: Any) -> str:
    """The first screen's upper part: the classes, and the number of images a class and split."""
    if data is None or not hasattr(data, "counts"):
        return "Data: given as loaders"
    names, counts = names_of(classes_of(data) or 0), data.counts()
    sizes = data.sizes() if hasattr(data, "sizes") else {split: sum(numbers) for split, numbers in counts.items()}
    one, many = _CALLED[getattr(data, "task", "multiclass")]
    shown = ", ".join(map(printable, names[:10])) + (", …" if len(names) > 10 else "")
    lines = [f"Data  {type(data).__name__}: {len(names)} {one if len(names) == 1 else many} ({shown})"]
    for split, numbers in counts.items():
        spread = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
        lines.append(f"  {split:<6}{sizes[split]:>9,} images" + (f", {spread} a {one}" if one != "number" else ""))
    if one == "label":  # each, so that cells that were split otherwise than meant are seen
        told = [f"{name!r} {number:,}" for name, number in zip(names, counts["train"], strict=True)]
        more = f", and {len(told) - MAX_LISTED_LABELS:,} more" if len(told) > MAX_LISTED_LABELS else ""
        lines.append(f"  labels  {', '.join(told[:MAX_LISTED_LABELS])}{more}")
    if skipped := _skipped(data):
        lines.append(f"  left out  {len(skipped):,} image(s) that cannot be read, see {SKIPPED}")
    return "\n".join(lines)


def _skipped(data: Any) -> list[str]:
    """The images that are left out, one a line, with the split and the reason."""
    left_out: dict[str, list[str]] = getattr(data, "left_out", {})
    return [f"{split}: {line}" for split, lines in left_out.items() for line in lines]


def confusion_figure(matrix: torch.Tensor, names: list[str]) -> Any:
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
    shown = drawable(names)
    axes.set_xlabel(f"predicted{shown.note}")
    axes.set_ylabel("true")
    small = 8 if num <= 30 else 5
    axes.set_xticks(range(num), shown.labels, rotation=90, fontsize=small, **shown.style)
    axes.set_yticks(range(num), shown.labels, fontsize=small, **shown.style)
    if num <= 30:
        for i in range(num):
            for j in range(num):
                if matrix[i, j]:
                    color = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=6, color=color)
    return figure


def _picture_plan(trainer: L.Trainer, pl_module: L.LightningModule, epoch: int) -> None:
    """Draws the plan, with the phases that have begun by an epoch where they did."""
    starts = run_starts(trainer, pl_module, epoch)
    figure = plan_figure(run_plan(trainer, pl_module), starts, run_epochs(trainer), stage_rates(trainer, initial=True))
    _tensorboard(trainer).add_figure("plan", figure, trainer.global_step)


def _log_rates(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Logs the phase, and the learning rate of each stage, which is 0 while it is frozen."""
    board = _tensorboard(trainer)
    if not board:
        return
    plan = run_plan(trainer, pl_module)
    index = len(run_starts(trainer, pl_module, trainer.current_epoch)) - 1
    board.add_scalar("phase", index, trainer.global_step)
    for stage, rate in stage_rates(trainer).items():
        trains = stage in plan.phases[index].trainable
        board.add_scalar(f"lr/{stage}", rate if trains else 0.0, trainer.global_step)


def _tensorboard(trainer: L.Trainer) -> Any:
    """The writer of the TensorBoard logger, on the rank that has one."""
    if not trainer.is_global_zero:
        return None
    return next((log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)
