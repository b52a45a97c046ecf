"""Decides what a person sees of a run: the first screen, and the pictures and curves in TensorBoard."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from lit_ft.callbacks.unfreezing import GradualUnfreezing
from lit_ft.plan import Plan, make_plan

MAX_PICTURED_CLASSES = 100


class RunReport(Callback):
    """Prints the data and the plan when a fit begins, and gives TensorBoard what the module's own logs lack.

    That is, for the TensorBoard logger: the plan as text, the phase and each stage's learning rate, a grid of training
    images as the network gets them, the validation confusion matrix, and the best score among the hyperparameters.

    Args:
        num_images: Training images in the grid; 0 shows none.
        confusion_matrix: Whether to picture the validation confusion matrix after each epoch.
    """

    def __init__(self, num_images: int = 32, confusion_matrix: bool = True) -> None:
        self.num_images = num_images
        self.confusion_matrix = confusion_matrix
        self._confusion: MulticlassConfusionMatrix | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the first screen and logs it."""
        module = cast(Any, pl_module)
        screen = "\n\n".join([data_table(cast(Any, trainer).datamodule), plan_table(trainer, pl_module)])
        _print(screen)
        if board := _tensorboard(trainer):
            board.add_text("plan", "```\n" + screen + "\n```", 0)
        if self.confusion_matrix and module.task.name == "multiclass":
            num_classes = len(module.class_names)
            if num_classes <= MAX_PICTURED_CLASSES:
                self._confusion = MulticlassConfusionMatrix(num_classes).to(pl_module.device)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Shows the first images of a run, as augmented."""
        board = _tensorboard(trainer)
        if board and self.num_images and trainer.global_step == 0 and batch_idx == 0:
            images = batch[0][: self.num_images].cpu()
            if images.dtype == torch.uint8:
                board.add_image("train/images", make_grid(images, pad_value=255), 0)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the phase and the learning rates as the epoch begins."""
        _log_rates(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs them as often as the trainer logs."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            _log_rates(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Counts a batch."""
        if self._confusion is not None and not trainer.sanity_checking:
            self._confusion.update(outputs["logits"], outputs["targets"])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the confusion matrix."""
        if self._confusion is None or trainer.sanity_checking:
            return
        matrix = self._confusion.compute()  # asks all ranks
        self._confusion.reset()
        if board := _tensorboard(trainer):
            names = cast(Any, pl_module).class_names
            board.add_figure("val/confusion_matrix", confusion_figure(matrix.cpu(), names), trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the best score beside the hyperparameters."""
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        for logger in trainer.loggers:
            if best is not None and isinstance(logger, TensorBoardLogger):
                # Now, and not at the start: TensorBoard shows the first score that comes with them.
                logger.log_hyperparams(dict(pl_module.hparams), {"hp_metric": float(best)})


def run_plan(trainer: L.Trainer, pl_module: L.LightningModule) -> Plan:
    """The plan that the run follows; without a callback that thaws, everything trains."""
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, GradualUnfreezing) and callback.plan is not None:
            return callback.plan
    return make_plan("full", list(cast(Any, pl_module).backbone.stage_modules()), None)


def stage_rates(trainer: L.Trainer) -> dict[str, float]:
    """The present learning rate of each stage, head first."""
    rates: dict[str, float] = {}
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            rates.setdefault(group.get("stage", "model"), float(group["lr"]))
    return rates


def data_table(data: Any) -> str:
    """The first screen's upper part: the classes, and the number of images a class and split."""
    if data is None or not hasattr(data, "counts"):
        return "Data: given as loaders"
    names, counts = data.class_names, data.counts()
    shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    lines = [f"Data  {type(data).__name__}: {len(names)} classes ({shown})"]
    for split, numbers in counts.items():
        spread = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
        lines.append(f"  {split:<6}{sum(numbers):>9,} images, {spread} a class")
    return "\n".join(lines)


def plan_table(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """The first screen's lower part: phase, epochs, what trains, parameters and learning rates."""
    module = cast(Any, pl_module)
    plan = run_plan(trainer, pl_module)
    sizes = {
        stage: sum(p.numel() for part in parts for p in part.parameters())
        for stage, parts in module.stage_modules().items()
    }
    total = sum(sizes.values())
    bases = {
        group["stage"]: group.get("initial_lr", group["lr"])
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if "stage" in group
    }
    network = module.hparams["backbone"]
    name = network if isinstance(network, str) else network["class_path"]
    rows = [("phase", "epochs", "trainable stages", "parameters", "learning rates")]
    for i, phase in enumerate(plan.phases, start=1):
        last = "…" if phase.num_epochs is None else phase.first_epoch + phase.num_epochs - 1
        epochs = f"{phase.first_epoch}" if last == phase.first_epoch else f"{phase.first_epoch}-{last}"
        num = sum(sizes[stage] for stage in phase.trainable)
        rates = [bases[stage] for stage in phase.trainable if stage in bases]
        span = f"{rates[0]:.2g}" if min(rates) == max(rates) else f"{rates[0]:.2g} to {rates[-1]:.2g}"
        everything = phase.trainable == plan.stages
        stages = "all" if everything and len(plan.stages) > 3 else ", ".join(phase.trainable)
        rows.append((str(i), epochs, stages, f"{num:,} ({num / total:.1%})", span))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"Plan  {name}: {', '.join(plan.stages)}; {total:,} parameters", *table])


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
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    small = 8 if num <= 30 else 5
    axes.set_xticks(range(num), names, rotation=90, fontsize=small)
    axes.set_yticks(range(num), names, fontsize=small)
    if num <= 30:
        for i in range(num):
            for j in range(num):
                if matrix[i, j]:
                    color = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=6, color=color)
    return figure


def _log_rates(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Logs the phase, and the learning rate of each stage, which is 0 while it is frozen."""
    board = _tensorboard(trainer)
    if not board:
        return
    plan = run_plan(trainer, pl_module)
    index = plan.phase_index(trainer.current_epoch)
    board.add_scalar("phase", index, trainer.global_step)
    for stage, rate in stage_rates(trainer).items():
        trains = stage in plan.phases[index].trainable
        board.add_scalar(f"lr/{stage}", rate if trains else 0.0, trainer.global_step)


@rank_zero_only
def _print(text: str) -> None:
    print(f"\n{text}\n", flush=True)


def _tensorboard(trainer: L.Trainer) -> Any:
    """The writer of the TensorBoard logger, on the rank that has one."""
    if not trainer.is_global_zero:
        return None
    return next((log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)
