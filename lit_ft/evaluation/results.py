"""Callback that writes what a model predicted for the images of a test or validation, and what follows from that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ft.console import format_value, log_progress, rank_zero_print
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.tables.tables import escape_formula
from lit_ft.evaluation.predictions import write_rows
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import find_run
from lit_ft.tasks.task import Task
from lit_ft.training.history import write_intervals

_SAMPLES = 200
"""Bootstrap samples of an interval, and below, of large sets, whose intervals are narrow."""
_FEW_SAMPLES = 20
_VALUES = 1 << 27
"""Logits that all samples together may have, before there are fewer samples; with a quarter of it there are none."""

_MOST_VALUES = 1 << 27
"""Logits that are kept of an evaluation, in one process; those of more images are not, nor are there results then."""


@dataclass(frozen=True)
class Evaluated:
    """The images of an evaluation, in the order of the data.

    Args:
        logits: ``(N, K)``.
        targets: As metrics count them: classes ``(N,)``, labels or numbers ``(N, K)``.
        names: The path of each image, or its index.
    """

    logits: Tensor
    targets: Tensor
    names: Sequence[str]


class ResultWriter(Callback):
    """Writes the results of a test, or of a validation that is no part of a fit, to the folder of the run.

    ``predictions_test.csv`` has a row an image, ``per_class.csv`` one a class, ``confusion.csv`` the number of images
    of each true class (rows) and predicted class (columns), and ``metrics.json`` gets a 95% interval of each metric, by
    bootstrap over the images (Efron and Tibshirani 1993, An Introduction to the Bootstrap). Those of a validation have
    ``_val`` in their names.
    """

    def __init__(self) -> None:
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._num_values = 0

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier evaluation."""
        self._outputs, self._num_values = [], 0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise."""
        self._outputs, self._num_values = [], 0

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes the predictions of a batch, if the module's step gives them."""
        if isinstance(outputs, Mapping) and _are_of_task(pl_module, outputs.get("logits"), outputs.get("targets")):
            self._num_values += outputs["logits"].numel()
            if self._num_values > _MOST_VALUES:
                self._outputs = []
            else:
                self._outputs.append((outputs["logits"].detach().cpu(), outputs["targets"].detach().cpu()))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Likewise."""
        if trainer.state.fn == "validate":
            self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the results."""
        self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def _write(self, trainer: Any, module: Any, split: str) -> None:
        run, outputs = find_run(trainer), self._outputs
        name = getattr(trainer.datamodule, "results_name", split) if split == "test" else split
        self._outputs = []
        if self._num_values > _MOST_VALUES:
            rank_zero_warn(f"too many predictions to keep, so that no {run and run.result_table('predictions', name)}")
        parts: list[Any] = [outputs]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, outputs)
        if run is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        for kind in ("predictions", "per_class", "confusion"):  # of an earlier evaluation, which may have been another
            run.result_table(kind, name).unlink(missing_ok=True)
        found = _join(parts, trainer.datamodule, split) if all(parts) else None
        if found is None:
            return
        task = module.task
        write_rows(run.result_table("predictions", name), prediction_rows(found, task, module.class_names))
        if task.name != "regression":
            write_rows(run.result_table("per_class", name), class_rows(found, task, module.class_names))
        if task.name == "multiclass":
            write_rows(run.result_table("confusion", name), confusion_rows(found, module.class_names))
        intervals = bootstrap(found, task, f"{split}/")
        write_intervals(run, name, intervals)
        main = module.main_metric[0].removeprefix("val/")
        if ends := _format({name: intervals.get(f"{split}/{name}") for name in (main, "loss")}, split):
            rank_zero_print(f"95% intervals  {ends}")


def _are_of_task(module: Any, logits: Any, targets: Any) -> bool:
    """Whether these are what the task of a module has: a step of the user's own may give soft targets, or none."""
    if not isinstance(module, FineTuneModule) or not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        return False
    if logits.ndim != 2 or logits.shape[1] != len(module.class_names):
        return False
    if module.task.name == "multiclass":
        return targets.shape == logits.shape[:1] and not targets.is_floating_point()
    return targets.numel() == logits.numel()


def _format(intervals: Mapping[str, Sequence[float] | None], split: str) -> str:
    known = [(f"{split}/{name}", *map(format_value, ends)) for name, ends in intervals.items() if ends is not None]
    return ", ".join(f"{name} {low} to {high}" for name, low, high in known)


def _join(parts: Sequence[Any], data: Any, split: str) -> Evaluated | None:
    """The images of all processes, each of which has every so-manieth; None where it is not known which it has."""
    outputs = [[torch.cat(values) for values in zip(*part, strict=True)] for part in parts]
    num, images = sum(len(logits) for logits, _ in outputs), _find_images(data, split)
    if len(parts) > 1 and (images is None or len(images) != num):  # repeated, or limited
        return None
    order = torch.cat([torch.arange(rank, num, len(parts)) for rank in range(len(parts))]).argsort()
    logits, targets = (torch.cat(values)[order] for values in zip(*outputs, strict=True))
    names = images.paths.full if isinstance(images, FileSplit) else str
    return Evaluated(logits, targets, [names(row) for row in range(num)])


def _find_images(data: Any, split: str) -> Any:
    """The images of a split, as far as they are of a data module of lit_ft; without test images those of validation."""
    if not isinstance(data, ImageDataModule):
        return None
    return data.splits.get(data.tested if split == "test" else split)  # type: ignore[call-overload]


def prediction_rows(found: Evaluated, task: Task, class_names: Sequence[str]) -> Iterator[list[str]]:
    """Yields the header, and a row an image: what is true, what was predicted, how probable that was, and the loss."""
    names, predicted = [escape_formula(name) for name in class_names], task.predict(found.logits)
    losses = task.image_losses(found.logits, found.targets)
    paths = [escape_formula(name) for name in found.names]
    if task.name == "multiclass":
        yield ["path", "class", "predicted", "probability", "loss"]
        best, classes = predicted.max(dim=1)
        rows = zip(found.targets.tolist(), classes.tolist(), best.tolist(), losses.tolist(), strict=True)
        for path, (true, k, probability, loss) in zip(paths, rows, strict=False):
            yield [path, names[true], names[k], f"{probability:.6g}", f"{loss:.6g}"]
        return
    what = "probability" if task.name == "multilabel" else "predicted"
    yield ["path", *names, *(f"{what} of {name}" for name in names), "loss"]
    targets = found.targets.reshape(predicted.shape)
    for path, true, values, loss in zip(paths, targets.tolist(), predicted.tolist(), losses.tolist(), strict=False):
        yield [path, *(f"{value:.9g}" for value in true), *(f"{value:.9g}" for value in values), f"{loss:.6g}"]


def class_rows(found: Evaluated, task: Task, class_names: Sequence[str]) -> Iterator[list[str]]:
    """Yields the header, and a row a class or label; a share of no images is empty."""
    yield ["class", "images", "predicted", "precision", "recall", "f1"]
    if task.name == "multiclass":
        true, predicted = (torch.nn.functional.one_hot(k, len(class_names)) for k in _classes(found))
    else:
        true, predicted = found.targets.long(), (task.predict(found.logits) > 0.5).long()
    right = (true * predicted).sum(dim=0).tolist()
    for name, hits, num, times in zip(
        class_names, right, true.sum(dim=0).tolist(), predicted.sum(dim=0).tolist(), strict=True
    ):
        shares = [
            hits / times if times else None,
            hits / num if num else None,
            2 * hits / (num + times) if num else None,
        ]
        cells = ["" if share is None else f"{share:.4f}" for share in shares]
        yield [escape_formula(name), str(num), str(times), *cells]


def confusion_rows(found: Evaluated, class_names: Sequence[str]) -> Iterator[list[str]]:
    """Yields the header with the predicted classes, and a row of numbers of images for each true class."""
    names = [escape_formula(name) for name in class_names]
    true, predicted = _classes(found)
    counts = torch.bincount(true * len(names) + predicted, minlength=len(names) ** 2).view(len(names), len(names))
    yield ["class", *names]
    for name, row in zip(names, counts.tolist(), strict=True):
        yield [name, *map(str, row)]


def _classes(found: Evaluated) -> tuple[Tensor, Tensor]:
    """The true and the predicted class of each image."""
    return found.targets.long(), found.logits.argmax(dim=1)


def bootstrap(found: Evaluated, task: Task, prefix: str, seed: int = 0) -> dict[str, list[float]]:
    """The 95% interval of each metric and of the loss, by what they are of images drawn again with replacement.

    Of large sets fewer samples are drawn, and the interval is 1.96 of their standard deviations to either side; of the
    largest, whose intervals are narrow, there are none, as they would take minutes.
    """
    if found.logits.numel() > _VALUES // 4:
        return {}
    generator, num = torch.Generator().manual_seed(seed), len(found.logits)
    num_samples = max(_FEW_SAMPLES, min(_SAMPLES, _VALUES // max(1, found.logits.numel())))
    metrics, losses = task.metrics(prefix), task.image_losses(found.logits, found.targets)
    for metric in metrics.values():
        cast(Any, metric).distributed_available_fn = lambda: False  # this process has all images
    drawn: dict[str, list[float]] = {}

    def draw() -> Iterator[int]:
        for _ in range(num_samples):
            rows = torch.randint(num, (num,), generator=generator)
            metrics.reset()
            task.update(metrics, found.logits[rows], found.targets[rows])
            for name, value in {**metrics.compute(), f"{prefix}loss": losses[rows].mean()}.items():
                drawn.setdefault(name, []).append(float(value))
            yield 1

    log_progress("Intervals", draw(), num_samples, unit="samples")
    return {name: interval for name, values in drawn.items() if (interval := _interval(values)) is not None}


def _interval(values: Sequence[float]) -> list[float] | None:
    """The interval of bootstrap samples; None where some are not defined, such as R2 of one number."""
    drawn = torch.tensor(values, dtype=torch.float64)
    if not bool(drawn.isfinite().all()):
        return None
    if len(drawn) >= _SAMPLES:
        return cast(list[float], drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())
    middle, half = float(drawn.mean()), 1.96 * float(drawn.std())
    return [middle - half, middle + half] if math.isfinite(half) else None
