"""Callback that reports a run: its first screen, and what its loggers show of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L

from lit_ft.console import format_table, rank_zero_print
from lit_ft.errors import UserError, printable
from lit_ft.evaluation.curves import Drift, Speed, phase_curves, rate_curves
from lit_ft.evaluation.handed_back import log_confusion, log_handed_back, predict_again
from lit_ft.evaluation.loggers import find_board, log_picture, log_scalars, takes_pictures
from lit_ft.evaluation.pictures import draw_first_images, picture_plan
from lit_ft.evaluation.tensorboard import Params, collect_params, log_layout
from lit_ft.model.module import FineTuneModule
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run, find_best_callback, find_run
from lit_ft.tasks.classes import name_classes, read_classes
from lit_ft.training.history import HistoryWriter
from lit_ft.training.progress import is_better
from lit_ft.training.selected import MAX_FEATURES, OutputRecorder, SelectionListener, ValidationOutputs
from lit_ft.unfreezing.view import plan_table, run_plan

INTERVAL_SECONDS = 60.0
"""Least time between two confusion matrices, as drawing one takes longer than a whole epoch of a small head."""

MAX_LABELS = 100  # with their numbers of images
MAX_NAMES = 10

# What each task predicts, singular and plural.
_NOUNS = {"multiclass": ("class", "classes"), "multilabel": ("label", "labels"), "regression": ("number", "numbers")}


class RunReport(SelectionListener):
    """Prints the data and the plan when a fit begins, and logs the run to the loggers of the trainer.

    All loggers get the phase and each stage's learning rate, the main metric of the training batches, the drift of the
    weights, the speed, and the metrics of the model that is handed back. TensorBoard, W&B and MLflow get pictures of
    the plan, of training images as the network gets them, of the validation confusion matrix, and of the worst mistakes
    of the model that is handed back. TensorBoard also gets a layout of charts, a table of hyperparameters, and the
    features of validation images for its projector. The folder of the run gets the picture of training images, which
    its report shows, and in ``skipped_images.txt`` the images that cannot be read and are skipped.

    Args:
        num_images: Number of training images in the picture; 0 logs none.
        confusion_matrix: Whether to log the validation confusion matrix, of the model that is handed back, and before
            that at most once a minute of the best epoch so far.
        projector_images: Number of validation images in the projector; 0 writes none.

    Raises:
        UserError: If a number is negative.
    """

    def __init__(
        self, num_images: int = 32, confusion_matrix: bool = True, projector_images: int = MAX_FEATURES
    ) -> None:
        for key, value in (("num_images", num_images), ("projector_images", projector_images)):
            if value < 0:
                raise UserError(f"`report.{key}`: must be at least 0, got {value}")
        self.num_images = num_images
        self.confusion_matrix = confusion_matrix
        self.projector_images = projector_images
        self._is_undecided = False
        self._speed = Speed()
        self._drift: Drift | None = None
        self._recorder: OutputRecorder | None = None
        self._listening: OutputRecorder | None = None  # the same, in a validation that is part of a fit
        self._best: ValidationOutputs | None = None  # of the best epoch so far
        self._drawn = 0.0
        self._run: Run | None = None
        self._later: list[Callable[[], None]] | None = None  # what waits for the first step of a fit to be done

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keeps the weights that the run begins with, before a checkpoint is loaded."""
        self._drift = self._recorder = self._listening = self._best = None
        self._drawn, self._later = time.monotonic(), None
        if stage == "fit" and trainer.loggers and not getattr(trainer, "is_plan", False):
            self._drift = Drift(trainer, pl_module)
            self._recorder = OutputRecorder(self.projector_images)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the first screen and logs it."""
        if isinstance(pl_module, FineTuneModule):
            pl_module.follow_finders()  # else the plan would have the rates from before
        plan, run = run_plan(trainer, pl_module), find_run(trainer)
        self._run = None if cast(Any, trainer).fast_dev_run else run
        self._is_undecided, self._later = plan.undecided, []
        if not trainer.is_global_zero:  # the others would count the arithmetic of the network in vain
            return
        data = cast(Any, trainer).datamodule
        screen = f"{format_data_table(data)}\n\n{plan_table(trainer, pl_module)}"
        rank_zero_print(f"\n{screen}\n")
        if run and (skipped := format_skipped(data)):
            run.folder.mkdir(parents=True, exist_ok=True)
            run.skipped_images.write_text("\n".join(skipped) + "\n", "utf-8", "surrogateescape")
        params = collect_params(trainer, pl_module) if trainer.loggers else {}
        for logger in trainer.loggers:
            logger.log_hyperparams({name: value for name, value in params.items() if name not in pl_module.hparams})
        self._log(partial(_log_layout, trainer, cast(Any, pl_module).task.name, len(plan.phases), params, screen))
        self._log(picture_plan(trainer, pl_module, trainer.current_epoch))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Logs the images of the first batch."""
        if self.num_images and trainer.global_step == 0 and batch_idx == 0:
            picture = draw_first_images(trainer, pl_module, batch, self.num_images, self._run)
            if picture is not None:
                self._log(partial(log_picture, trainer, "train/images", picture, 0, has_photos=True))
            self._speed.go_on()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the phase and the learning rates as the epoch begins."""
        curves = {**phase_curves(trainer, pl_module), **rate_curves(trainer, pl_module)}
        self._log(partial(log_scalars, trainer, curves, trainer.global_step))
        self._speed.begin(trainer.train_dataloader)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the learning rates as often as the trainer logs."""
        if self._later is not None:
            self._log_all()
            self._speed.go_on()
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            log_scalars(trainer, rate_curves(trainer, pl_module), trainer.global_step)
        self._speed.step(batch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the main metric of the training batches, the drift and the speed."""
        scores: dict[str, float] = getattr(pl_module, "train_metrics", dict)()  # of all processes
        drift = self._drift.compute(pl_module) if self._drift is not None and trainer.is_global_zero else {}
        writer = next((one for one in cast(Any, trainer).callbacks if isinstance(one, HistoryWriter)), None)
        if writer is not None and (mean := writer.mean_loss(trainer)) is not None:
            scores = {**scores, "train/loss_epoch": mean}  # as of the validation, where `train/loss` is of single steps
        step = max(0, trainer.global_step - 1)  # at which Lightning logs what the validation of the epoch came to
        log_scalars(trainer, {**scores, **drift, **self._speed.compute(trainer)}, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to keep what the model gives for the validation images."""
        is_kept = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._listening = self._recorder if is_kept else None
        if self._listening:
            self._listening.on_validation_start(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps it."""
        if self._listening:
            self._listening.on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps what the best epoch so far gave, and draws its confusion matrix at most once a minute."""
        if self._listening:
            self._listening.on_validation_end(trainer, pl_module)
            if _is_best(trainer):
                self._best = self._listening.gather(trainer)
                self._draw_best(trainer, pl_module)
        self._speed.go_on()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the plan if it was open at the start, and what still waits where no step was made."""
        self._log_all()
        if self._is_undecided or any(phase.plateau for phase in run_plan(trainer, pl_module).phases):
            picture_plan(trainer, pl_module, max(0, trainer.current_epoch - 1))()

    def on_selected(
        self, trainer: L.Trainer, pl_module: L.LightningModule, share: float, outputs: ValidationOutputs | None
    ) -> None:
        """Logs the model that is handed back; a run whose pictures cannot be drawn is whole without them."""
        if self._recorder is None or cast(Any, trainer).fast_dev_run:
            return
        if outputs is None and share == 1:
            outputs = self._best
        self._best = None
        try:
            outputs = outputs or predict_again(trainer, pl_module)
            if outputs is not None and trainer.is_global_zero:
                log_handed_back(trainer, pl_module, outputs, self.confusion_matrix, self.projector_images)
        except Exception as error:
            rank_zero_warn(f"the model that is handed back is not logged ({' '.join(str(error).split())})")

    def state_dict(self) -> dict[str, Any]:
        """By which a resumed run finds that it has the first weights."""
        return {"first_norms": {} if self._drift is None else self._drift.norms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Measures no drift from other weights than those that the run began with."""
        if self._drift is not None and state_dict.get("first_norms"):
            self._drift.check(state_dict["first_norms"])

    def _log(self, log: Callable[[], None]) -> None:
        """Logs at once, or as a fit begins when its first step is done: TensorBoard takes long to load."""
        if self._later is None:
            log()
        else:
            self._later.append(log)

    def _log_all(self) -> None:
        waiting, self._later = self._later or [], None
        for log in waiting:
            log()

    def _draw_best(self, trainer: L.Trainer, module: Any) -> None:
        due = self.confusion_matrix and time.monotonic() - self._drawn >= INTERVAL_SECONDS
        if due and self._best is not None and takes_pictures(trainer):
            log_confusion(trainer, module, self._best, f"epoch {trainer.current_epoch}", trainer.global_step)
            self._drawn = time.monotonic()


def _log_layout(trainer: L.Trainer, task: str, num_phases: int, params: Params, screen: str) -> None:
    if board := find_board(trainer):
        log_layout(board, task, num_phases, params)
        board.add_text("plan", f"```\n{screen}\n```", 0)


def _is_best(trainer: L.Trainer) -> bool:
    """Whether a validation is better than that of the best checkpoint, which is written after this."""
    callback = find_best_callback(trainer)
    score = None if callback is None else trainer.callback_metrics.get(callback.monitor)
    best = getattr(callback, "best_model_score", None)
    return score is not None and (best is None or is_better(float(score), float(best), callback.mode))


def format_data_table(data: Any) -> str:
    """The classes of a data module, if there is one, and the number of images of each split and class."""
    if data is None or not hasattr(data, "counts"):
        return "Data: given as loaders"
    names, counts = name_classes(read_classes(data) or 0), data.counts()
    sizes = data.sizes() if hasattr(data, "sizes") else {split: sum(numbers) for split, numbers in counts.items()}
    noun, nouns = _NOUNS[getattr(data, "task", "multiclass")]
    first = ", ".join(map(printable, names[:MAX_NAMES])) + (", …" if len(names) > MAX_NAMES else "")
    lines = [f"Data  {type(data).__name__}: {len(names)} {noun if len(names) == 1 else nouns} ({first})"]
    if getattr(data, "fold", None):
        lines.append(f"  fold {data.fold} of {data.folds} is held out as val")
    rows = []
    for split, numbers in counts.items():
        spread = f"{min(numbers)}" if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
        per_class = "" if noun == "number" else f", {spread} a {noun}"
        rows.append((f"  {split}", f"{sizes[split]:,}", f"images{per_class}"))
    lines += format_table(rows, ("<8", ">8"), gap=" ").splitlines()
    spec: Any = getattr(data, "input_spec", None)
    if (bands := getattr(spec, "bands", None)) is not None:
        lines.append(f"  bands     {f'all {spec.channels}' if bands == 'all' else ', '.join(map(str, bands))}")
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
