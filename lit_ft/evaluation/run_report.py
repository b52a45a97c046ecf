"""Callback that reports a run: its first screen, and what TensorBoard shows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from lit_ft.console import format_table, rank_zero_print
from lit_ft.errors import printable
from lit_ft.evaluation.tensorboard import ConfusionPicture, find_board, log_best_score, log_images, log_plan, log_rates
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_run
from lit_ft.tasks.classes import name_classes, read_classes
from lit_ft.unfreezing.view import plan_table, run_plan

MAX_PICTURED = 100  # classes of a confusion matrix
MAX_LABELS = 100  # with their numbers of images
MAX_NAMES = 10

# What each task predicts, singular and plural.
_NOUNS = {"multiclass": ("class", "classes"), "multilabel": ("label", "labels"), "regression": ("number", "numbers")}


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
        if self.confusion_matrix and module.task.name == "multiclass" and len(module.class_names) <= MAX_PICTURED:
            self._confusion = ConfusionPicture(len(module.class_names), pl_module.device)

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


def format_data_table(data: Any) -> str:
    """The classes of a data module, if there is one, and the number of images of each split and class."""
    if data is None or not hasattr(data, "counts"):
        return "Data: given as loaders"
    names, counts = name_classes(read_classes(data) or 0), data.counts()
    sizes = data.sizes() if hasattr(data, "sizes") else {split: sum(numbers) for split, numbers in counts.items()}
    noun, nouns = _NOUNS[getattr(data, "task", "multiclass")]
    first = ", ".join(map(printable, names[:MAX_NAMES])) + (", …" if len(names) > MAX_NAMES else "")
    lines = [f"Data  {type(data).__name__}: {len(names)} {noun if len(names) == 1 else nouns} ({first})"]
    rows = []
    for split, numbers in counts.items():
        spread = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
        per_class = "" if noun == "number" else f", {spread} a {noun}"
        rows.append((f"  {split}", f"{sizes[split]:,}", f"images{per_class}"))
    lines += format_table(rows, ("<8", ">8"), gap=" ").splitlines()
    if noun == "label":  # each, so that cells that were split otherwise than meant are seen
        labels = [f"{name!r} {number:,}" for name, number in zip(names, counts["train"], strict=True)]
        more = f", and {len(labels) - MAX_LABELS:,} more" if len(labels) > MAX_LABELS else ""
        lines.append(f"  labels  {', '.join(labels[:MAX_LABELS])}{more}")
    if skipped := format_skipped(data):
        file = Run(Path()).skipped_images.name
        lines.append(f"  left out  {len(skipped):,} image(s) that cannot be read, see {file}")
    return "\n".join(lines)


def format_skipped(data: Any) -> list[str]:
    """One line for each image that cannot be read, with its split and the reason."""
    left_out: dict[str, list[str]] = getattr(data, "left_out", {})
    return [f"{split}: {line}" for split, lines in left_out.items() for line in lines]
