"""Charts of the report of a run: of its epochs, and of what its predictions are worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from lit_ft.evaluation.line_chart import draw_lines, draw_points, draw_spans
from lit_ft.evaluation.predicted_images import Numbers, PredictedImages
from lit_ft.training.calibrated_model import BINS
from lit_ft.training.history import EpochRow

MAX_PAIRS = 15
_MAX_NUMBERS = 4  # of a regression, with a chart each
_MAX_LABELS = 12  # in a chart
_MAX_POINTS = 40  # of a line
_MAX_DRAWN = 1000  # points without a line
_LEAST_SHARE = 9  # images, of which fewer have no share that means much
_MARGINS = {"acc", "f1", "precision", "recall"}


def draw_metric(history: Sequence[EpochRow], name: str) -> str:
    """A chart of a metric of training and validation, such as the loss."""
    series = {f"{split}/{name}": _points(history, f"{split}/{name}") for split in ("train", "val")}
    return draw_lines(series, "epoch", find_unfreezings(history))


def draw_scores(history: Sequence[EpochRow]) -> dict[str, str]:
    """A chart of the metrics that are shares, of validation and where known of training, and one of each other."""
    last = history[-1] if history else {}
    names = [name for name in last if name.startswith("val/") and name not in ("val/loss", "val/acc_top5")]
    shares = [name for name in names if name.partition("/")[2] in _MARGINS]
    both = [name for name in last if name.startswith("train/") and name.replace("train", "val", 1) in shares] + shares
    charts = {"Scores": draw_lines({name: _points(history, name) for name in both}, "epoch", find_unfreezings(history))}
    others = [name.partition("/")[2] for name in names if name not in shares]
    return charts | {name: draw_metric(history, name) for name in others}


def draw_rates(history: Sequence[EpochRow]) -> str:
    """A chart of the learning rate of each stage, where it trains."""
    return draw_lines({name[3:]: _points(history, name) for name in _rates(history)}, "epoch", log=True)


def _rates(history: Sequence[EpochRow]) -> list[str]:
    return [name for name in (history[0] if history else {}) if name.startswith("lr/")]


def _points(history: Sequence[EpochRow], name: str) -> list[tuple[float, float]]:
    return [(float(row["epoch"] or 0), float(value)) for row in history if (value := row.get(name)) is not None]


def draw_plan(history: Sequence[EpochRow]) -> str:
    """A picture of the epochs in which each stage trained, the head at the top; nothing without an epoch."""
    if not history:
        return ""
    bars = {name[3:]: _spans([row["epoch"] or 0 for row in history if row.get(name)]) for name in _rates(history)}
    return draw_spans(bars, float(history[-1]["epoch"] or 0) + 1, "epoch")


def _spans(epochs: Sequence[float]) -> list[tuple[float, float]]:
    """The first epoch of each run of epochs that follow each other, and the one after its last.

    >>> _spans([0, 1, 4])
    [(0, 2), (4, 5)]
    """
    ends = [i for i, (one, other) in enumerate(pairwise(epochs)) if other != one + 1]
    firsts, lasts = [0, *(i + 1 for i in ends)], [*ends, len(epochs) - 1]
    return [(epochs[a], epochs[b] + 1) for a, b in zip(firsts, lasts, strict=True)] if epochs else []


def find_unfreezings(history: Sequence[EpochRow]) -> dict[float, str]:
    """The epochs in which stages began to train that were frozen before, and their names."""
    found: dict[float, str] = {}
    for before, row in pairwise(history):
        stages = [name[3:] for name in row if name.startswith("lr/") and row[name] and not before.get(name)]
        if stages:
            found[float(row["epoch"] or 0)] = f"unfrozen: {', '.join(stages)}"
    return found


def draw_reliability(images: PredictedImages) -> tuple[str, str]:
    """The share of predictions that are right, by their probability, and how far the two are apart, in words.

    The expected calibration error is that of equal bins (Guo et al. 2017, On calibration of modern neural networks); of
    labels each counts, by the probability that it is there.
    """
    if images.task == "multilabel":
        probability, right = images.predicted.ravel(), (images.true > 0.5).ravel()
    else:
        probability, right = images.probability, images.right
    known = np.isfinite(probability)
    probability, right = probability[known], right[known]
    if not len(probability):
        return "", ""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    means, shares = (
        np.bincount(bins, values, minlength=BINS) / np.maximum(counts, 1) for values in (probability, right)
    )
    error = float((np.abs(means - shares) * counts).sum() / len(probability))
    points = [(float(means[k]), float(shares[k])) for k in np.flatnonzero(counts)]
    what = "labels" if images.task == "multilabel" else "predictions"
    series = {f"share of {what} that are right": points}
    words = f"Expected calibration error {error:.1%} of {len(probability):,} {what} in {BINS} bins of probability."
    return draw_lines(series, "probability", guide=(0.0, 1.0)), words


def draw_predictions(images: PredictedImages, is_binary: bool) -> dict[str, str]:
    """Charts of what predictions are worth, by title.

    Of classes it is how many are right of the most probable predictions, of two classes and of labels precision by
    recall, and of numbers what was predicted by what is true.

    Args:
        images: What was predicted.
        is_binary: Whether the model knows two classes, so that the probability of one gives that of the other.
    """
    if images.task == "multiclass":
        order = np.argsort(-images.probability, kind="stable")
        shares = np.cumsum(images.right[order]) / np.arange(1, len(images) + 1)
        rows = _thin(len(images), first=min(len(images) - 1, _LEAST_SHARE))
        points = [((row + 1) / len(images), float(shares[row])) for row in rows]
        charts = {"Accuracy of the most probable": draw_lines({"accuracy": points}, "share of the images")}
        return charts | ({"Precision": _draw_trades(*_as_labels(images), images.names)} if is_binary else {})
    if images.task == "multilabel":
        return {"Precision": _draw_trades(images.true, images.predicted, images.names)}
    charts, images = {}, images.part(_thin(len(images), most=_MAX_DRAWN))
    for k, name in enumerate(images.names[:_MAX_NUMBERS]):
        points_of = dict(zip(images.paths, zip(images.true[:, k], images.predicted[:, k], strict=True), strict=True))
        charts[f"Predicted {name}"] = draw_points(points_of, f"true {name}", "predicted")
    return charts


def _as_labels(images: PredictedImages) -> tuple[Numbers, Numbers]:
    """Whether each of two classes is true of the images, and how probable it is, ``(N, 2)`` each."""
    true, predicted = (np.stack([of == k for k in range(len(images.names))], axis=1) for of in
                       (images.true, images.predicted))  # fmt: skip
    probability = images.probability[:, None]
    return true.astype(float), np.where(predicted, probability, 1 - probability)


def _draw_trades(true: Numbers, probability: Numbers, names: Sequence[str]) -> str:
    """Precision by recall of labels, ``(N, K)`` of each, at all thresholds; none of a label that no image has.

    The average precision is the sum of the precisions, each times the recall that it adds.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve  # slow to load

    series = {}
    for k, name in enumerate(names[:_MAX_LABELS]):
        known = np.isfinite(probability[:, k])
        own, sure = true[known, k] > 0.5, probability[known, k]
        if own.any():
            precision, recall, _ = precision_recall_curve(own, sure)
            places = range(len(precision) - 1)[::-1]  # the last is no threshold's
            points = [(float(recall[k]), float(precision[k])) for k in (places[row] for row in _thin(len(places)))]
            series[f"{name}, AP {average_precision_score(own, sure):.2f}"] = points
    return draw_lines(series, "recall")


def _thin(num: int, first: int = 0, most: int = _MAX_POINTS) -> list[int]:
    """Rows from a first one to the last, at most so many that points can be told apart."""
    return sorted({round(row) for row in np.linspace(first, num - 1, min(num - first, most)).tolist()})


def find_pairs(matrix: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, str, int]]:
    """The classes that are confused most often: true, predicted, and number of images.

    >>> find_pairs([("ant", [8, 2]), ("bee", [3, 9])])
    [('bee', 'ant', 3), ('ant', 'bee', 2)]
    """
    names = [name for name, _ in matrix]
    pairs = [
        (true, names[k], count)
        for row, (true, counts) in enumerate(matrix)
        for k, count in enumerate(counts)
        if count and k != row
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:MAX_PAIRS]
