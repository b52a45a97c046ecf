"""Labels that are probably wrong, by confident learning on out-of-fold predictions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelIssues:
    """The images in the order in which their labels should be looked at.

    Args:
        ranked: Indices of all images ``(N,)``, the most suspect first.
        margins: Probability of each image's label minus that of the most probable other class ``(N,)``.
        suggested: The most probable other class of each image ``(N,)``.
        estimated: Estimated number of wrong labels; so many of the first in the ranking are suspects.
    """

    ranked: Tensor
    margins: Tensor
    suggested: Tensor
    estimated: int


def find_label_issues(probabilities: Tensor, labels: Tensor) -> LabelIssues:
    """Ranks labels by how much other images contradict them.

    An image is confidently of class j if its probability of j is at least the mean that images labelled j have. Those
    that are confidently of another class than labelled estimate the number of wrong labels (Northcutt, Jiang and Chuang
    2021, Confident Learning: Estimating Uncertainty in Dataset Labels, section 3.1); the ranking is by the margin of
    the label (their "normalized margin").

    Args:
        probabilities: Out-of-fold probabilities ``(N, K)``.
        labels: The given labels ``(N,)``.
    """
    rows = torch.arange(len(labels))
    given = probabilities[rows, labels]
    counts = torch.bincount(labels, minlength=probabilities.shape[1])
    thresholds = torch.zeros(len(counts), dtype=given.dtype).index_add_(0, labels, given) / counts
    confident = probabilities.where(probabilities >= thresholds, -1.0)  # NaN, of a class without images, never is
    best, found = confident.max(dim=1)
    others = probabilities.clone()
    others[rows, labels] = -1.0
    most, suggested = others.max(dim=1)
    margins = given - most
    estimated = int(((best >= 0) & (found != labels)).sum())
    return LabelIssues(margins.argsort(stable=True), margins, suggested, estimated)
