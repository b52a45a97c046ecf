"""Callback that reports a run: its first screen, and what TensorBoard shows of it."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_ft.console import rank_zero_print
from lit_ft.evaluation.confusion import ConfusionPicture
from lit_ft.evaluation.data_table import format_data_table, format_skipped
from lit_ft.evaluation.tensorboard import find_board, log_best_score, log_images, log_plan, log_rates
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import find_run
from lit_ft.unfreezing.view import plan_table, run_plan

MAX_PICTURED_CLASSES = 100


class RunReport(Callback):
    """Prints the data and the plan when a fit begins, and logs to TensorBoard.

    TensorBoard gets the plan as text and as a picture, the phase and each stage's learning rate, a grid of training
    images as the network gets them, the validation confusion matrix, and the best score with the hyperparameters.
    Images that cannot be read and are skipped are listed in ``skipped_images.txt`` in the folder of the run.

    Args:
        num_images: Number of training images in the grid; 0 logs none.
        confusion_matrix: Whether to log the validation confusion matrix, after the first and the last validation and
            at most every 10 seconds between them.
    """

    def __init__(self, num_images: int = 32, confusion_matrix: bool = True) -> None:
        self.num_images = num_images
        self.confusion_matrix = confusion_matrix
        self._confusion: ConfusionPicture | None = None
        self._is_undecided = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the first screen and logs it."""
        if isinstance(pl_module, FineTuneModule):
            pl_module.follow_finders()  # else the plan would have the rates from before
        self._is_undecided = run_plan(trainer, pl_module).undecided
        run = find_run(trainer)
        if trainer.is_global_zero:  # the others would count the arithmetic of the network in vain
            data = cast(Any, trainer).datamodule
            screen = f"{format_data_table(data)}\n\n{plan_table(trainer, pl_module)}"
            rank_zero_print(f"\n{screen}\n")
            if run and (skipped := format_skipped(data)):
                run.folder.mkdir(parents=True, exist_ok=True)
                run.skipped_images.write_text("\n".join(skipped) + "\n", "utf-8", "surrogateescape")
            if board := find_board(trainer):
                board.add_text("plan", f"```\n{screen}\n```", 0)
            log_plan(trainer, pl_module, trainer.current_epoch)
        module: Any = pl_module
        if self.confusion_matrix and module.task.name == "multiclass":
            num_classes = len(module.class_names)
            if num_classes <= MAX_PICTURED_CLASSES:
                self._confusion = ConfusionPicture(num_classes, pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Logs the images of the first batch."""
        if self.num_images and trainer.global_step == 0 and batch_idx == 0:
            log_images(trainer, pl_module, batch, self.num_images)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the phase and the learning rates as the epoch begins."""
        log_rates(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs them as often as the trainer logs."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            log_rates(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Counts a batch in the confusion matrix."""
        if self._confusion is not None and not trainer.sanity_checking:
            self._confusion.update(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the confusion matrix, unless one was logged a moment ago."""
        if self._confusion is not None and not trainer.sanity_checking:
            self._confusion.end_epoch(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the last confusion matrix, the plan if it was open at the start, and the best score."""
        if self._confusion is not None:
            self._confusion.draw(trainer, pl_module)
        if self._is_undecided or any(phase.plateau for phase in run_plan(trainer, pl_module).phases):
            log_plan(trainer, pl_module, max(0, trainer.current_epoch - 1))
        log_best_score(trainer, pl_module)
