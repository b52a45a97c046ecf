"""What the features of one backbone tell about the images: an honest score, labels needed, wrong labels, odd images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_ft.probes.findings.label_issues import find_label_issues
from lit_ft.probes.findings.learning_curve import extrapolate, learning_curve
from lit_ft.probes.findings.unlike import distances_to_neighbours
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import STRENGTHS, CrossValidation, corrected_interval, cross_validate
from lit_ft.probes.images import ProbeImages
from lit_ft.probes.survey import Survey

GAIN = 0.01
"""The rise in accuracy that further labels are counted for."""

_MOST = 1000
"""So many images of a ranking are kept."""

_CURVE_REPEATS = 2


@dataclass(frozen=True)
class CopyEffect:
    """How much copies in other folds flatter the score.

    Args:
        num_copies: Number of images that are copies of another one.
        with_copies: Score where each copy is in another fold than what it is a copy of.
        without: Score where each is in the fold of the other one, and counts once.
    """

    num_copies: int
    with_copies: float
    without: float


@dataclass(frozen=True)
class LabelsNeeded:
    """What more labelled images would bring.

    Args:
        sizes: Most training images of a class.
        accuracies: Mean accuracy for each size.
        intervals: Its 95% interval for each size.
        fitted: Images a class, and the accuracy that is fitted for them, with its 95% interval; empty where there are
            too few sizes.
        more: Further images a class until the accuracy is `GAIN` higher: the middle, and the 95% interval; infinite
            where no number suffices, ``None`` where there are too few sizes to say.
        limit: Accuracy with any number of images, likewise.
        recalls: Recall of each class with all images.
        neediest: The class with the least recall.
        neediest_gain: By how much its recall rose from the second largest size to the largest, or ``None``.
    """

    sizes: list[int]
    accuracies: list[float]
    intervals: list[tuple[float, float]]
    fitted: list[tuple[float, float, float, float]]
    more: tuple[float, float, float] | None
    limit: tuple[float, float, float] | None
    recalls: dict[str, float]
    neediest: str
    neediest_gain: float | None


@dataclass(frozen=True)
class Ranking:
    """Images in the order in which they should be looked at.

    Args:
        items: ``row``, ``path``, ``split`` and ``class`` of each of the first, and what it was ranked by.
        count: How many of the first are suspects, or 0 where that cannot be said.
    """

    items: list[dict[str, Any]]
    count: int = 0


@dataclass(frozen=True)
class Findings:
    """What the features tell about the images; what makes no sense for the task is ``None``."""

    backbone: str
    copies: CopyEffect | None
    labels: LabelsNeeded | None
    issues: Ranking | None
    unlike: Ranking | None
    seconds: float


def find(survey: Survey, images: ProbeImages, device: torch.device) -> Findings:
    """Asks the features of a backbone everything."""
    began = time.perf_counter()
    basis, validated = Basis(survey.features, device), survey.validated
    copies = labels = issues = unlike = None
    if images.num_copies:
        copies = measure_copies(basis, images, validated)
    if images.targets.loss == "softmax":
        labels = measure_labels(basis, images, validated)
        issues = rank_labels(validated, images)
        unlike = rank_unlike((survey.features - basis.mean.cpu().float()) / basis.scale.cpu().float(), images)
    return Findings(survey.probe.name, copies, labels, issues, unlike, time.perf_counter() - began)


def measure_copies(basis: Basis, images: ProbeImages, validated: CrossValidation) -> CopyEffect:
    """Compares the score with that of the same folds but for copies, which are each moved to the next one.

    Stronger penalties than the best are not tried, as who has seen an image needs weaker ones.
    """
    is_first, is_held = images.is_first, validated.folds >= 0
    moved = (validated.folds + 1) % (int(validated.folds.max()) + 1)
    apart = validated.folds.where(is_first | ~is_held, moved)
    naive = cross_validate(basis, images.targets, apart, images.weights, strengths=STRENGTHS[: validated.best + 1])
    return CopyEffect(images.num_copies, naive.accuracy, float(validated.correct[is_held & is_first].mean()))


def measure_labels(basis: Basis, images: ProbeImages, validated: CrossValidation) -> LabelsNeeded:
    """The learning curve, its extrapolation, and the class that is recognised worst.

    Weaker penalties than the best for all images are not tried, as fewer images need stronger ones.
    """
    strengths = STRENGTHS[validated.best : validated.best + 3]
    curve = learning_curve(basis, images.targets, validated.folds[:_CURVE_REPEATS], strengths)
    outlook = extrapolate(curve, GAIN)
    intervals = [corrected_interval(scores, 1 / int(validated.folds.max())) for scores in curve.accuracies]
    last = curve.recalls[-1]
    neediest = int(last.nan_to_num(math.inf).argmin())
    names = images.data.class_names
    gain = float(last[neediest] - curve.recalls[-2, neediest]) if len(curve.sizes) > 1 else None
    return LabelsNeeded(
        curve.sizes,
        curve.accuracies.mean(dim=1).tolist(),
        [(max(0.0, low), min(1.0, high)) for low, high in intervals],
        [] if outlook is None else outlook.fitted,
        None if outlook is None else outlook.more,
        None if outlook is None else outlook.limit,
        dict(zip(names, last.tolist(), strict=True)),
        names[neediest],
        gain,
    )


def rank_labels(validated: CrossValidation, images: ProbeImages) -> Ranking:
    """The labels that the out-of-fold predictions contradict, the most suspect first."""
    rows = (validated.folds >= 0).all(dim=0).nonzero().squeeze(1)
    probabilities = validated.logits[:, rows].softmax(dim=2).mean(dim=0)
    found = find_label_issues(probabilities, images.targets.values[rows])
    names = images.data.class_names
    first = found.ranked[:_MOST]
    facts = [
        {"suggested": names[suggested], "margin": margin}
        for suggested, margin in zip(found.suggested[first].tolist(), found.margins[first].tolist(), strict=True)
    ]
    return Ranking(_items(images, rows[first], facts), found.estimated)


def rank_unlike(features: Tensor, images: ProbeImages) -> Ranking:
    """The images that are furthest from the others of their class, in units of the median distance of all.

    Copies are left out, as they would be each other's neighbours.

    Args:
        features: Standardised features ``(N, D)``.
        images: The images.
    """
    rows = images.firsts
    distances = distances_to_neighbours(features[rows], images.targets.values[rows])
    distances /= distances.nanmedian()
    order = distances.nan_to_num(-1.0).argsort(descending=True, stable=True)[:_MOST]
    order = order[distances[order].isfinite()]
    return Ranking(_items(images, rows[order], [{"distance": one} for one in distances[order].tolist()]))


def _items(images: ProbeImages, rows: Tensor, facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    samples = [(row, images.samples[row]) for row in rows.tolist()]
    return [
        {"row": row, "path": sample.path, "split": sample.split, "class": sample.label, **fact}
        for (row, sample), fact in zip(samples, facts, strict=True)
    ]
