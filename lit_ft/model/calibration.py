"""Calibration of a trained model: probabilities that hold, predictions that are unsure, images unlike those known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_ft.tasks.task import Task

COVERAGE = 0.9
"""Probability with which a label set holds the true class."""

KNOWN = 0.95
"""Share of images like those of the validation that are not taken for unlike them."""

MAX_REFERENCES = 1000
"""Images whose features are kept to compare others with."""

_DEVIATION = 0.3
"""Standard deviation of the log of a temperature, before any image is seen: of what fits to 30 to 260 images of four
kinds of data needed, it gave the least loss on further images."""

_MOST_VALUES = 1 << 24
"""Logits that a temperature is fitted to; more tell nothing new."""


@dataclass(frozen=True)
class Calibration:
    """What validation images tell of the predictions of a model.

    A label set has all classes that are at least as probable as one in ten true classes of the validation is not: it
    holds the true class of an image like these with a probability of 90% (split conformal prediction; Angelopoulos and
    Bates 2021, A Gentle Introduction to Conformal Prediction). A class with a probability of 90% of its own is in the
    set, too: where more than nine in ten images are predicted with less doubt, it would be in none. A prediction whose
    set is not one class is unsure, as is one that is more probably wrong than right.

    Args:
        temperature: What logits were divided by; the head in the checkpoint has it in its weights.
        least_probability: The probability from which a class is in the label set; None with too few images.
        references: Features of validation images of length 1, ``(M, D)``, float16.
        farthest: The distance to the nearest of these above which an image is unlike them; None with too few images.
    """

    temperature: float = 1.0
    least_probability: float | None = None
    references: Tensor | None = None
    farthest: float | None = None

    def plain(self) -> dict[str, Any]:
        """The calibration as a checkpoint holds it."""
        return asdict(self)

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> Calibration:
        """The calibration of a checkpoint."""
        return Calibration(**values)

    def label_sets(self, probabilities: Tensor) -> Tensor | None:
        """Which classes are in the label set of each image, ``(B, K)``, of probabilities ``(B, K)``."""
        return None if self.least_probability is None else probabilities >= self.least_probability

    def are_unsure(self, probabilities: Tensor) -> Tensor | None:
        """Which predictions are unsure, ``(B,)``: of a label set that is not one class, or more probably wrong."""
        sets = self.label_sets(probabilities)
        return None if sets is None else (sets.sum(dim=1) != 1) | (probabilities.max(dim=1).values < 0.5)

    def are_unlike(self, features: Tensor) -> Tensor | None:
        """Which images are unlike those of the validation, ``(B,)``, of features ``(B, D)``."""
        if self.references is None or self.farthest is None:
            return None
        return distances_to_nearest(features, self.references.to(features.device)) > self.farthest

    def with_references(self, features: Tensor) -> Calibration:
        """The calibration with the features ``(N, D)`` of validation images to compare with.

        What is far is told by the images themselves, each compared with the others: 95% are nearer.
        """
        references = F.normalize(features.float(), dim=1)[:: math.ceil(len(features) / MAX_REFERENCES)].half()
        apart = distances_to_nearest(references, references, are_same=True)
        return replace(self, references=references, farthest=_conformal_bound(apart, KNOWN))


def distances_to_nearest(features: Tensor, references: Tensor, are_same: bool = False) -> Tensor:
    """How far each image is from the nearest reference: ``(B,)``, from 0 to 2.

    It is the distance of features of length 1 (Sun et al. 2022, Out-of-Distribution Detection with Deep Nearest
    Neighbors).

    Args:
        features: ``(B, D)``.
        references: ``(M, D)``.
        are_same: Whether these are the same images, each of which is compared with the others.
    """
    features, references = (F.normalize(one.float(), dim=1) for one in (features, references))
    # By differences, as a product of matrices is off by .001 near 0, and in TF32 by more.
    apart = torch.cdist(features, references, compute_mode="donot_use_mm_for_euclid_dist")
    if are_same:
        apart.fill_diagonal_(torch.inf)
    return apart.min(dim=1).values


def fit_temperature(logits: Tensor, targets: Tensor, task: Task) -> float:
    """The temperature that makes the probabilities of held-out images most likely (Guo et al. 2017, On Calibration).

    It is near 1 for few images: its log has a normal prior.

    Args:
        logits: ``(N, K)``.
        targets: As metrics count them: classes ``(N,)``, or labels ``(N, K)``.
        task: The task, of classes or labels.
    """
    from scipy.optimize import minimize_scalar  # slow to load, and not needed to predict

    step = math.ceil(logits.numel() / _MOST_VALUES)
    logits, targets = logits[::step].double(), targets[::step]
    per_image = task.num_outputs if task.name == "multilabel" else 1  # whose loss is a mean over its labels

    def cost(log_temperature: float) -> float:
        losses = task.image_losses(logits / math.exp(log_temperature), targets)
        return float(losses.sum()) * per_image + log_temperature**2 / (2 * _DEVIATION**2)

    return math.exp(minimize_scalar(cost, bounds=(-3.0, 3.0), method="bounded").x)


def fit_label_sets(probabilities: Tensor, targets: Tensor) -> float | None:
    """The probability from which a class is in a label set, by those of true classes; None with too few images.

    It is at most `COVERAGE`. Sets only grow by that, so that they hold the true class as often as without.

    Args:
        probabilities: ``(N, K)``.
        targets: Classes ``(N,)``.
    """
    bound = _conformal_bound(-probabilities.gather(1, targets.long().unsqueeze(1)).squeeze(1), COVERAGE)
    return None if bound is None else min(-bound, COVERAGE)


def _conformal_bound(scores: Tensor, share: float) -> float | None:
    """What the score of one more image is at most, with a probability of ``share``, by those of N images ``(N,)``."""
    rank = math.ceil((len(scores) + 1) * share)
    return float(scores.sort().values[rank - 1]) if 0 < rank <= len(scores) else None
