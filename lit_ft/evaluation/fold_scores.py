"""Scores of a cross-validation: of each fold, their mean and its interval, and over all images out of fold."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from lit_ft.console import format_table, format_value
from lit_ft.evaluation.out_of_fold import OutOfFold
from lit_ft.evaluation.prediction_files import write_rows
from lit_ft.evaluation.results import write_results
from lit_ft.probes.heads.cross_validation import corrected_interval, widen_by_wilson
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.training.metrics_file import change_entries, read_entries, write_metrics

_ENTRY = "folds"
_BOUNDS = dict.fromkeys(("acc", "acc_top5", "precision", "recall", "f1"), (0.0, 1.0))
_BOUNDS |= dict.fromkeys(("loss", "mse", "mae"), (0.0, math.inf)) | {"r2": (-math.inf, 1.0)}
_PRINTED = ("acc", "f1", "mse", "mae", "r2", "loss")
"""The metrics that the terminal shows; all are in ``metrics.json``."""

CAVEAT = (
    "The 95% interval of the mean is by t over the folds, corrected for the training images that they share (Nadeau "
    "and Bengio 2003). The images of a fold have also chosen its epoch or blend, which makes val a little optimistic; "
    "test images have chosen nothing."
)
"""What the figures are worth."""


@dataclass(frozen=True)
class FoldScores:
    """The scores of all folds of a cross-validation.

    Args:
        chosen: Which model was handed back in each fold.
        sizes: Number of the images that each was measured on.
        scores: Each metric of validation, and of test images that stay apart, in each fold; first the main one.
        intervals: The 95% interval of the mean of each metric of validation, unless it is equal in all folds.
        out_of_fold: Each metric of validation over all images, each predicted by the model that has not seen it.
    """

    chosen: list[str]
    sizes: list[int]
    scores: dict[str, list[float]]
    intervals: dict[str, tuple[float, float]]
    out_of_fold: dict[str, float]

    def entry(self) -> dict[str, Any]:
        """What ``metrics.json`` has of it."""
        metrics = {
            name: {"folds": values, "mean": _mean(values), "std": _deviation(values)}
            | ({"interval": [*self.intervals[name]]} if name in self.intervals else {})
            for name, values in self.scores.items()
        }
        return {"images": self.sizes, "chosen": self.chosen, "metrics": metrics}

    def flat(self) -> dict[str, float]:
        """The mean of each metric, the standard deviation and the ends of the interval, and those over all images."""
        found: dict[str, float] = {}
        for name, values in self.scores.items():
            found |= {name: _mean(values), f"{name}_std": _deviation(values)}
            if name in self.intervals:
                found[f"{name}_low"], found[f"{name}_high"] = self.intervals[name]
        return found | {f"out_of_fold/{name.partition('/')[2]}": value for name, value in self.out_of_fold.items()}

    @classmethod
    def read(cls, entries: Mapping[str, Mapping[str, Any]]) -> FoldScores | None:
        """Reads what ``metrics.json`` has of a cross-validation; None of another run, or where folds are missing."""
        entry, val = entries.get(_ENTRY) or {}, entries.get("val") or {}
        if "metrics" not in entry:
            return None
        scores = {name: [_read_number(one) for one in found["folds"]] for name, found in entry["metrics"].items()}
        ends = {name: found["interval"] for name, found in entry["metrics"].items() if "interval" in found}
        intervals = {name: (_read_number(low), _read_number(high)) for name, (low, high) in ends.items()}
        over_all = {name: _read_number(value) for name, value in val.items() if name.startswith("val/")}
        return cls(entry["chosen"], entry["images"], scores, intervals, over_all)

    def rows(self, format_one: Callable[[str, float], str]) -> list[list[str]]:
        """The rows of a table of the usual metrics, the head first: each fold, their mean, and all images at once.

        Args:
            format_one: Gives the text of a metric, by its name without the split, and its value.
        """
        names = [name for name in self.scores if name.partition("/")[2] in _PRINTED]

        def row(first: str, size: int | None, values: Mapping[str, float], last: str = "") -> list[str]:
            known = {name: value for name, value in values.items() if math.isfinite(value)}
            cells = [format_one(name.partition("/")[2], known[name]) if name in known else "" for name in names]
            return [first, "" if size is None else f"{size:,}", *cells, *([last] if last else [])]

        rows = [["fold", "images", *names, "chosen"]]
        for place, (size, chosen) in enumerate(zip(self.sizes, self.chosen, strict=True)):
            rows.append(row(str(place + 1), size, {name: self.scores[name][place] for name in names}, chosen))
        rows.append(row("mean", None, {name: _mean(self.scores[name]) for name in names}))
        rows.append(row("std", None, {name: _deviation(self.scores[name]) for name in names}))
        for place, word in enumerate(("from", "to")):
            cells = row(f"95% {word}", None, {name: ends[place] for name, ends in self.intervals.items()})
            missing = [name.startswith("val/") and name not in self.intervals for name in names]
            rows.append(cells[:2] + ["-" if none else cell for none, cell in zip(missing, cells[2:], strict=True)])
        if self.out_of_fold:
            rows.append(row("out of fold", sum(self.sizes), self.out_of_fold))
        return rows

    def format(self) -> str:
        """The scores as a table for the terminal."""
        rows = self.rows(lambda _, value: format_value(value))
        table = format_table(rows, f"<>{'>' * (len(rows[0]) - 3)}<")
        return (
            f"Cross-validation  {len(self.sizes)} folds of {sum(self.sizes):,} images, each measured by the model that "
            f"has not seen it\n\n{table}\n\n{textwrap.fill(CAVEAT, 120)}"
        )


def finished_folds(whole: Run) -> list[int]:
    """The folds of a cross-validation that were trained to their end, and are still there."""
    finished = (read_entries(whole.metrics).get(_ENTRY) or {}).get("finished", ())
    return [number for number in finished if whole.fold(number).metrics.is_file()]


def add_finished(whole: Run, number: int) -> None:
    """Notes that a fold was trained to its end."""
    with change_entries(whole) as entries:
        known = entries.get(_ENTRY) or {}
        entries[_ENTRY] = {**known, "finished": sorted({*known.get("finished", ()), number})}


def summarise(whole: Run, num_folds: int) -> FoldScores:
    """Reads the scores of all folds, and writes the metrics and tables of the cross-validation.

    Args:
        whole: The cross-validation, of which all folds are finished.
        num_folds: Their number.
    """
    folds = [whole.fold(number) for number in range(1, num_folds + 1)]
    if lost := [str(number) for number, fold in enumerate(folds, 1) if not fold.out_of_fold.is_file()]:
        rank_zero_warn(f"no out-of-fold predictions, as the model of fold {', '.join(lost)} gave no logits")
    held = None if lost else OutOfFold.join([OutOfFold.read(fold.out_of_fold) for fold in folds])
    found = _collect([read_entries(fold.metrics) for fold in folds], held)
    if held is not None:
        images, task = held.as_evaluated()
        write_metrics(whole, "val", {"split": "val", "images": len(held.names), **found.out_of_fold}, None)
        write_results(whole, task, held.class_names, images, "val", "val")
        write_rows(whole.predictions, held.rows())
    with change_entries(whole) as entries:
        entries[_ENTRY] = {**found.entry(), "finished": list(range(1, num_folds + 1))}
    return found


def _collect(entries: Sequence[Mapping[str, Any]], held: OutOfFold | None) -> FoldScores:
    """The scores that all folds have, by the metrics of each."""
    scores: dict[str, list[float]] = {}
    for split in ("val", "test"):
        own = [entry.get(split) or {} for entry in entries]
        if all(one.get("split") == split for one in own):
            names = [name for name in own[0] if name.startswith(f"{split}/") and all(name in one for one in own)]
            scores |= {name: [_read_number(one[name]) for one in own] for name in names}
    selections = [entry.get("selection") or {} for entry in entries]
    monitor = next((one["monitor"] for one in selections if "monitor" in one), "")
    scores = {name: scores[name] for name in sorted(scores, key=lambda name: _place(name, monitor))}
    over_all = {} if held is None else _measure(held)
    num_shares = len(held.names) if held is not None and held.task == "multiclass" else 0
    intervals = {
        name: ends
        for name, values in scores.items()
        if name.startswith("val/") and (ends := _interval(name, values, over_all.get(name), num_shares))
    }
    sizes = [int((entry.get("val") or {}).get("images", 0)) for entry in entries]
    return FoldScores([str(one.get("chosen", "")) for one in selections], sizes, scores, intervals, over_all)


def _place(name: str, monitor: str) -> tuple[int, str]:
    """Where a metric comes: first the one that chose, then the usual one of the task, then the loss."""
    usual = [metric for metric, _ in MAIN_METRIC.values()]
    of_val = not name.startswith("val/")
    return (0 if name == monitor else 1 if name in usual else 2 if name == "val/loss" else 3 + of_val), name


def _measure(held: OutOfFold) -> dict[str, float]:
    """The metrics over all images."""
    images, task = held.as_evaluated()
    metrics = task.metrics("val/")
    for metric in metrics.values():
        cast(Any, metric).distributed_available_fn = lambda: False  # this process has all images
    task.update(metrics, images.logits, images.targets)
    losses = task.image_losses(images.logits, images.targets)
    return {name: float(value) for name, value in {**metrics.compute(), "val/loss": losses.mean()}.items()}


def _interval(
    name: str, values: Sequence[float], over_all: float | None, num_shares: int
) -> tuple[float, float] | None:
    """The 95% interval of the mean of a metric, within what it can be.

    That of an accuracy is no narrower than that of one test on as many images: few may all be right in each fold. Of
    another metric that is equal in all folds, the folds do not show how far it varies, and there is none.
    """
    is_share = name == "val/acc" and over_all is not None and num_shares > 0
    if not is_share and min(values) == max(values):
        return None
    ends = corrected_interval(torch.tensor(values, dtype=torch.float64), 1 / (len(values) - 1))
    if is_share and over_all is not None:
        ends = widen_by_wilson(ends, over_all, num_shares)
    low, high = _BOUNDS.get(name.partition("/")[2], (-math.inf, math.inf))
    return max(low, ends[0]), min(high, ends[1])


def _read_number(given: float | None) -> float:
    """A number of ``metrics.json``, where one that is not defined is null."""
    return math.nan if given is None else float(given)


def _mean(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean())


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample."""
    return float(torch.tensor(values, dtype=torch.float64).std())
