"""Two runs compared on the images that both have predicted: differences of metrics, their intervals, and a verdict."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import binomtest

from lit_ft.evaluation.predicted_images import Numbers, PredictedImages
from lit_ft.tasks.monitored import MAIN_METRIC, METRICS
from lit_ft.tasks.task import TaskName

NUM_SAMPLES = 2000
"""Bootstrap samples of an interval of a difference."""

_VALUES = 1 << 24
"""Counts of images that are drawn at once."""

_MOST_COUNTS = 1 << 28
"""Counts of images that are drawn in all; of more images there are fewer samples, but at least some."""
_FEW_SAMPLES = 200

SIGNIFICANT = 0.05
"""The p-value below which a difference is clear."""


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
    def excludes_zero(self) -> bool:
        """Whether the interval does not contain 0; not where it is not defined."""
        low, high = self.interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class Pair:
    """A run compared with the first one, image by image.

    Args:
        title: The run.
        note: How the images of the two go together.
        num_images: The number of images that both have predicted.
        task: What they predict.
        differences: Of each metric, this run less the first one.
        first_right: What is true, what the first run and what this one predicted, for each image that the first run
            alone has right, by its path; for numbers, those that it has the smaller loss for. The clearest first.
        other_right: Likewise, for this run.
        p_value: Of McNemar's exact test, that one of them is right alone as often as the other; nan but for classes.
        others: The number of images that only the first run has predicted, and that of those that only this one has.
    """

    title: str
    note: str
    num_images: int
    task: TaskName = "multiclass"
    differences: dict[str, MetricDifference] = field(default_factory=dict)
    first_right: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    other_right: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    p_value: float = math.nan
    others: tuple[int, int] = (0, 0)

    @property
    def main(self) -> str:
        """The metric that the verdict is by, the main one of the task."""
        return MAIN_METRIC[self.task][0].partition("/")[2]

    @property
    def is_clear(self) -> bool:
        """Whether one of the two is better: for classes by the exact test, else by the interval of the main metric.

        A percentile of bootstrap samples is too small where few images differ: of 4 images that one of the two alone
        has right the interval excludes 0, while of two equal models one case in 8 is like that.
        """
        if math.isnan(self.p_value):
            return self.differences[self.main].excludes_zero
        return self.p_value < SIGNIFICANT

    @property
    def verdict(self) -> str:
        """Whether this run is better than the first one."""
        if not self.is_clear:
            return "no clear difference"
        one = self.differences[self.main]
        return "better" if (one.value > 0) == one.is_better else "worse"


def pair_runs(first: PredictedImages | None, other: PredictedImages | None, title: str) -> Pair:
    """Compares a run with the first one on the images that both have predicted; ``title`` is the run's."""
    if first is None or other is None:
        return Pair(title, "not compared image by image: one of the two has no predictions; test it", 0)
    if first.task != other.task or not first.has_names_of(other):
        return Pair(title, "not compared image by image: they predict different things", 0)
    names = list(dict.fromkeys([*first.names, *other.names]))
    whole = first.renamed(names), other.renamed(names)
    rows, note = match_images(*whole)
    others = len(first) - len(rows), len(other) - len(rows)
    if not rows:
        return Pair(title, note, 0, first.task, others=others)
    own, its = (_rescale(images.part(chosen)) for images, chosen in zip(whole, zip(*rows, strict=True), strict=True))
    note += "; loss of numbers standardised by these" if own.task == "regression" else ""
    lists = [_list_better(own, its, sign) for sign in (-1, 1)]
    p_value = find_p_value(*map(len, lists)) if own.task == "multiclass" else math.nan
    differences = bootstrap_differences(own, its)
    return Pair(title, note, len(rows), own.task, differences, lists[0], lists[1], p_value, others)


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


def _rescale(images: PredictedImages) -> PredictedImages:
    """The same images, numbers with losses on the scale of what is true of these images.

    Each run has standardised them by the images that it was trained on, and its losses are on that scale.
    """
    if images.task != "regression":
        return images
    deviations = images.true.std(axis=0)
    errors = (images.predicted - images.true) / np.where(deviations > 0, deviations, 1)
    return replace(images, losses=np.square(errors).mean(axis=1))


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
