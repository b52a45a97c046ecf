"""Callback that writes what a model predicted for the images of a test or validation, and what follows from that."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from lit_ft.console import format_value, log_progress, rank_zero_print
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.tables.tables import escape_formula
from lit_ft.errors import UserError
from lit_ft.evaluation.prediction_files import write_rows
from lit_ft.model.module import FineTuneModule
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run, find_run
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.tasks.task import Task
from lit_ft.training.evaluated import Evaluated, EvaluationOutputs, count_images, gather, join, name_images
from lit_ft.training.handed_back import is_refitted
from lit_ft.training.metrics_file import read_entries, remove_tables, write_intervals
from lit_ft.training.result_names import name_results
from lit_ft.training.selected import SelectionListener, ValidationOutputs

_SAMPLES = 200
"""Bootstrap samples of an interval, and below, of large sets, whose intervals are narrow."""
_FEW_SAMPLES = 20
_VALUES = 1 << 27
"""Logits that all samples together may have, before there are fewer samples; with a quarter of it there are none."""

_MOST_VALUES = 1 << 27
"""Logits that are kept of an evaluation, in one process; those of more images are not, nor are there results then."""


class ResultWriter(EvaluationOutputs, SelectionListener):
    """Writes the results of a test, of a validation outside a fit, and of the model that a fine-tuning has chosen.

    ``predictions_test.csv`` has a row an image, ``per_class_test.csv`` one a class, ``confusion_test.csv`` the number
    of images of each true class (rows) and predicted class (columns), and ``metrics.json`` gets a 95% interval of each
    metric, by bootstrap over the images (Efron and Tibshirani 1993, An Introduction to the Bootstrap). Those of the
    validation images have ``_val`` in their names.

    Args:
        most_values: Logits that are kept of an evaluation.
    """

    def __init__(self, most_values: int = _MOST_VALUES) -> None:
        super().__init__()
        self.most_values = most_values
        self._num_values = 0

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets an earlier evaluation.

        Raises:
            UserError: If a model is to be tested on validation images that it was trained on.
        """
        super().on_test_start(trainer, pl_module)
        self._num_values = 0
        data, path = cast(Any, trainer).datamodule, cast(Any, trainer).ckpt_path
        is_val = isinstance(data, ImageDataModule) and data.tested == "val"
        if trainer.state.fn == "test" and is_val and path and is_refitted(path) and self._are_own(trainer):
            raise UserError(
                f"`ckpt_path`: {path} was trained on its validation images, too (`refit`), and there are no others to "
                "test it on; give some, as with `data.root`"
            )

    def _are_own(self, trainer: L.Trainer) -> bool:
        """Whether the images are those of the run, as far as its folder is known."""
        run = find_run(trainer)
        return run is None or name_results(trainer, run, "test", {})[1] is None

    def take(self, module: FineTuneModule, logits: Tensor, targets: Tensor) -> None:
        """Keeps the outputs of a batch, unless that are too many."""
        self._num_values += logits.numel()
        if self._num_values > self.most_values:
            self.outputs = []
        else:
            super().take(module, logits, targets)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the results."""
        self._finish(trainer, pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Likewise."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "val")

    def _finish(self, trainer: L.Trainer, module: L.LightningModule, split: Split) -> None:
        run, outputs = find_run(trainer), self.outputs
        data = cast(Any, trainer).datamodule
        self.outputs = []
        parts = gather(trainer, outputs)
        if run is None or cast(Any, trainer).fast_dev_run or not trainer.is_global_zero:
            return
        name, _ = name_results(trainer, run, split, read_entries(run.metrics))
        if self._num_values > self.most_values:
            rank_zero_warn(f"too many predictions to keep, so that no {run.result_table('predictions', name)}")
        remove_tables(run, name)  # of an earlier evaluation, which may have been another
        found = join(parts, data, split)
        if found is None:
            return
        own = cast(FineTuneModule, module)
        print_intervals(write_results(run, own.task, own.class_names, found, split, name), own.task, split)

    def on_selected(
        self, trainer: L.Trainer, pl_module: L.LightningModule, share: float, outputs: ValidationOutputs | None
    ) -> None:
        """Writes what the model that is handed back gave for the validation images, where that is known."""
        run, data = find_run(trainer), cast(Any, trainer).datamodule
        if outputs is None or run is None or not trainer.is_global_zero:
            return
        num = len(outputs.targets)
        if trainer.world_size == 1 or num == count_images(data, "val"):  # else it is not known which image is which
            found = Evaluated(outputs.logits, outputs.targets, name_images(data, "val", num))
            own = cast(FineTuneModule, pl_module)
            write_results(run, own.task, own.class_names, found, "val", "val")


def write_results(
    run: Run, task: Task, class_names: Sequence[str], found: Evaluated, split: Split, name: str
) -> dict[str, list[float]]:
    """Writes the tables of an evaluation, and its intervals, which it gives.

    Args:
        run: The run.
        task: The task of the model that was evaluated.
        class_names: The names of its classes.
        found: Its outputs.
        split: The split, which the names of metrics begin with.
        name: What the results are called.
    """
    remove_tables(run, name)
    write_rows(run.result_table("predictions", name), prediction_rows(found, task, class_names))
    if task.name != "regression":
        write_rows(run.result_table("per_class", name), class_rows(found, task, class_names))
    if task.name == "multiclass":
        write_rows(run.result_table("confusion", name), confusion_rows(found, class_names))
    intervals = bootstrap(found, task, f"{split}/")
    write_intervals(run, name, intervals)
    return intervals


def print_intervals(intervals: Mapping[str, Sequence[float]], task: Task, split: Split) -> None:
    """Prints the intervals of the main metric and of the loss, as far as they are known."""
    main = MAIN_METRIC[task.name][0].removeprefix("val/")
    if ends := _format({name: intervals.get(f"{split}/{name}") for name in (main, "loss")}, split):
        rank_zero_print(f"95% intervals  {ends}")


def _format(intervals: Mapping[str, Sequence[float] | None], split: str) -> str:
    known = [(f"{split}/{name}", *map(format_value, ends)) for name, ends in intervals.items() if ends is not None]
    return ", ".join(f"{name} {low} to {high}" for name, low, high in known)


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
    yield ["path", *names, *(f"{what} of {name}" for name in class_names), "loss"]
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
    found_ends = {name: interval for name, values in drawn.items() if (interval := _interval(values)) is not None}
    # Where all images or none are right, samples of them tell nothing: Wilson's interval of a share of N does.
    rest = 1.96**2 / (num + 1.96**2)
    for name, (low, high) in found_ends.copy().items():
        if low == high and task.name == "multiclass" and name == f"{prefix}acc" and low in (0.0, 1.0):
            found_ends[name] = [1 - rest, 1.0] if low else [0.0, rest]
        elif low == high:
            del found_ends[name]
    return found_ends


def _interval(values: Sequence[float]) -> list[float] | None:
    """The interval of bootstrap samples; None where some are not defined, such as R2 of one number."""
    drawn = torch.tensor(values, dtype=torch.float64)
    if not bool(drawn.isfinite().all()):
        return None
    if len(drawn) >= _SAMPLES:
        return cast(list[float], drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())
    middle, half = float(drawn.mean()), 1.96 * float(drawn.std())
    return [middle - half, middle + half] if math.isfinite(half) else None
