"""Comparison of runs: what differs in their configs, and by how much they differ on the same images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from lit_ft.console import format_path
from lit_ft.data.loading.protocols import Split
from lit_ft.evaluation.predicted_images import Numbers, PredictedImages, parse_predictions
from lit_ft.evaluation.run_files import read_config, read_metrics, read_table, refuse_damaged
from lit_ft.runs import Run
from lit_ft.tasks.monitored import METRICS

NUM_SAMPLES = 2000
"""Bootstrap samples of an interval of a difference."""

_VALUES = 1 << 24
"""Counts of images that are drawn at once."""

_MOST_COUNTS = 1 << 28
"""Counts of images that are drawn in all; of more images there are fewer samples, but at least some."""
_FEW_SAMPLES = 200

_OF_THE_PLACE = ("ckpt_path", "name", "trainer.default_root_dir")
"""Options that say where a run is, and not what it is."""


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of a run.

    Args:
        title: Its folder.
        options: Its config, by the full names of the options.
        metrics: The metrics of a split, by name.
        intervals: Their intervals.
        chosen: The model that was handed back, where that is known.
        seconds: The seconds that it took, by part.
        images: What it predicted for the images of the split, where that is known.
    """

    title: str
    options: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    chosen: str
    seconds: dict[str, float]
    images: PredictedImages | None


@dataclass(frozen=True)
class MetricDifference:
    """How much higher a metric of a run is than that of the first one, on the same images.

    Args:
        value: The difference.
        interval: Its 95% interval, by bootstrap over the images.
        is_better: Whether higher is better.
    """

    value: float
    interval: tuple[float, float]
    is_better: bool

    @property
    def verdict(self) -> str:
        """Which of the two is better, or that it is not clear."""
        low, high = self.interval
        if low <= 0 <= high or math.isnan(low):
            return "no clear difference"
        return "better" if (low > 0) == self.is_better else "worse"


@dataclass(frozen=True)
class Pair:
    """A run compared with the first one, image by image.

    Args:
        title: The run.
        note: How the images of the two go together.
        num_images: The number of images that both have predicted.
        differences: Of each metric, this run less the first one.
        first_right: What is true, what the first run and what this one predicted, for each image that the first run
            alone has right, by its path; for numbers, those that it has the smaller loss for. The clearest first.
        other_right: Likewise, for this run.
        p_value: Of McNemar's exact test, that one of them is right alone as often as the other; nan for numbers.
    """

    title: str
    note: str
    num_images: int
    differences: dict[str, MetricDifference] = field(default_factory=dict)
    first_right: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    other_right: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    p_value: float = math.nan


@dataclass(frozen=True)
class RunComparison:
    """Runs, of which each is compared with the first.

    Args:
        runs: The runs.
        split: The split that they are compared on; empty where there is none that each has.
        options: The options that differ, and the value of each run; None where a run has none.
        pairs: A pair for each run but the first.
    """

    runs: list[ComparedRun]
    split: str
    options: dict[str, list[Any]]
    pairs: list[Pair]


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Compares runs by the files in their folders.

    Raises:
        UserError: If a folder is not that of a run, or a file in it is damaged.
    """
    splits: tuple[Split, Split] = ("test", "val")
    split = next((one for one in splits if all(run.result_table("predictions", one).is_file() for run in runs)), None)
    found = [_read_run(run, split or "test") for run in runs]
    names = dict.fromkeys(name for one in found for name in one.options)
    values = {name: [one.options.get(name) for one in found] for name in names if name not in _OF_THE_PLACE}
    differing = {name: own for name, own in values.items() if any(value != own[0] for value in own)}
    pairs = [pair_runs(found[0], other) for other in found[1:]]
    return RunComparison(found, split or "", differing, pairs)


def _read_run(run: Run, split: Split) -> ComparedRun:
    config = read_config(run)
    with refuse_damaged(run.metrics):
        metrics = read_metrics(run)
        own, facts = metrics.get(split, {}), metrics.get("run", {})
        intervals = {
            str(name).partition("/")[2]: [float(ends[0]), float(ends[1])]
            for name, ends in (own.get("intervals") or {}).items()
        }
        seconds = {str(name): float(value) for name, value in (facts.get("seconds") or {}).items()}
        chosen = str(metrics.get("selection", {}).get("chosen", ""))
        values = {
            name.partition("/")[2]: float(value)
            for name, value in own.items()
            if name.startswith(f"{split}/") and isinstance(value, (int, float))
        }
    with refuse_damaged(file := run.result_table("predictions", split)):
        images = parse_predictions(read_table(file))
    return ComparedRun(str(format_path(run.folder)), dict(flatten(config)), values, intervals, chosen, seconds, images)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a config by their full names, as on the command line; a class is the value of its own option.

    >>> dict(flatten({"data": {"class_path": "lit_ft.A", "init_args": {"root": "x"}}, "seed": 1}))
    {'data': 'lit_ft.A', 'data.root': 'x', 'seed': 1}
    """
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            yield name, value["class_path"]
            yield from flatten(value.get("init_args") or {}, f"{name}.")
        elif isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def pair_runs(first: ComparedRun, other: ComparedRun) -> Pair:
    """Compares a run with the first one on the images that both have predicted."""
    if first.images is None or other.images is None:
        return Pair(other.title, "not compared image by image: one of the two has no predictions; test it", 0)
    if first.images.task != other.images.task or not first.images.has_names_of(other.images):
        return Pair(other.title, "not compared image by image: they predict different things", 0)
    names = list(dict.fromkeys([*first.images.names, *other.images.names]))
    whole = first.images.renamed(names), other.images.renamed(names)
    rows, note = match_images(*whole)
    if not rows:
        return Pair(other.title, note, 0)
    own, its = (images.part(chosen) for images, chosen in zip(whole, zip(*rows, strict=True), strict=True))
    lists = [_list_better(own, its, sign) for sign in (-1, 1)]
    p_value = math.nan if own.task == "regression" else find_p_value(*map(len, lists))
    return Pair(other.title, note, len(rows), bootstrap_differences(own, its), lists[0], lists[1], p_value)


def match_images(first: PredictedImages, other: PredictedImages) -> tuple[list[tuple[int, int]], str]:
    """The rows of the images that two tables share and that have the same truth in both, and what to say about them.

    Images are the same where their paths are; where no path is, those within the folders that all of each lie in. Those
    that are in no file have their places instead, which are of the same images where all have the same truth.
    """
    keys, note = [list(first.paths), list(other.paths)], ""
    if not set(keys[0]) & set(keys[1]):
        folders = [_find_common(paths) for paths in keys]
        keys = [[p and os.path.relpath(p, folder) for p in paths] for paths, folder in zip(keys, folders, strict=True)]
        note = f"; matched by their names within {folders[0]} and {folders[1]}"
    places = {path: row for row, path in enumerate(keys[1])}
    rows = [(row, places[path]) for row, path in enumerate(keys[0]) if path in places]
    same = [(i, j) for i, j in rows if np.array_equal(first.true[i], other.true[j])]
    are_places = all(map(str.isdecimal, first.paths))  # of images that are in no file, and may be others
    if not same or (are_places and len(same) < len(rows)):
        return [], "not compared image by image: the two share no images"
    parts = [f"{len(same):,} images of both"]
    if len(same) < max(len(first), len(other)):
        parts.append(f"of {len(first):,} and {len(other):,}")
    if len(same) < len(rows):
        parts.append(f"without {len(rows) - len(same):,} whose class is another")
    return same, " ".join(parts) + note


def _find_common(paths: Sequence[str]) -> str:
    """The folder that all paths lie in; of some that are absolute and some that are not there is none."""
    folders = {os.path.dirname(path) for path in paths}
    return os.path.commonpath(folders) if len(set(map(os.path.isabs, folders))) == 1 else ""


def _list_better(first: PredictedImages, other: PredictedImages, sign: int) -> dict[str, tuple[str, str, str]]:
    """The images that one of two alone has right: the first for a sign of -1, else the other; see `Pair`."""
    gains = first.losses - other.losses
    is_better = sign * (other.right.astype(int) - first.right) > 0 if first.task != "regression" else sign * gains > 0
    chosen = np.flatnonzero(is_better)
    order = chosen[np.argsort(-sign * gains[chosen], kind="stable")].tolist()
    return {first.paths[row]: (*first.captions(row), other.captions(row)[1]) for row in order}


def find_p_value(first_alone: int, other_alone: int) -> float:
    """The p-value of McNemar's exact test that two models are right alone as often.

    McNemar 1947, Note on the sampling error of the difference between correlated proportions or percentages.

    >>> find_p_value(0, 5), find_p_value(3, 3)
    (0.0625, 1.0)
    """
    total = first_alone + other_alone
    return float(binomtest(first_alone, total).pvalue) if total else 1.0


def bootstrap_differences(
    first: PredictedImages, other: PredictedImages, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> dict[str, MetricDifference]:
    """How much higher each metric of the other is on the same images, in the same order.

    The images are drawn again with replacement, for both alike (Efron and Tibshirani 1993, An Introduction to the
    Bootstrap), and the interval is from the 2.5th to the 97.5th percentile of the differences.
    """
    num, generator = len(first), np.random.default_rng(seed)
    num_samples = max(_FEW_SAMPLES, min(num_samples, _MOST_COUNTS // num))
    once = np.ones((1, num))
    drawn: dict[str, list[Numbers]] = {}
    for begin in range(0, num_samples, step := max(1, _VALUES // num)):
        weights = generator.multinomial(num, np.full(num, 1 / num), size=min(step, num_samples - begin)).astype(float)
        for name, values in _subtract(first, other, weights).items():
            drawn.setdefault(name, []).append(values)
    found = {}
    for name, value in _subtract(first, other, once).items():
        low, high = np.quantile(np.concatenate(drawn[name]), (0.025, 0.975))
        found[name] = MetricDifference(float(value[0]), (float(low), float(high)), METRICS[first.task][name] == "max")
    return found


def _subtract(first: PredictedImages, other: PredictedImages, weights: Numbers) -> dict[str, Numbers]:
    own, its = first.measure(weights), other.measure(weights)
    return {name: its[name] - own[name] for name in METRICS[first.task] if name in own}
