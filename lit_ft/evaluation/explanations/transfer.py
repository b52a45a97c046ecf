"""The transfer, stage by stage: how far weights moved, how alike features stayed, and how well each stage predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from lit_ft.backbones.freezing import select_parameters
from lit_ft.console import log_progress
from lit_ft.evaluation.drift import relative_drift
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.solver import Targets

Stages = Mapping[str, Sequence[nn.Module]]
"""The modules of each stage, as `Staged.stage_modules` gives them."""

FEWEST = 10
"""Number of images below which features are not compared."""


@dataclass(frozen=True)
class StageChange:
    """What fine-tuning changed in a stage; what is not known is nan.

    Args:
        name: The stage.
        drift: How far its weights moved, as a share of their length.
        cka: How alike its features before and after are, at most 1.
        before: Out-of-fold score of a linear probe on the features before.
        after: The same after.
    """

    name: str
    drift: float = math.nan
    cka: float = math.nan
    before: float = math.nan
    after: float = math.nan


@dataclass(frozen=True)
class Transfer:
    """What fine-tuning changed.

    Args:
        stages: The stages, shallow to deep, and last the head, where it is known.
        images: The images on which features were compared, in words; empty where they were not.
        score: What the scores of the probes are: ``accuracy``, or for numbers ``R2``; empty where there are none.
        notes: What could not be computed, and why.
    """

    stages: list[StageChange]
    images: str = ""
    score: str = ""
    notes: list[str] = field(default_factory=list)


def measure_drift(before: Stages, after: Stages) -> dict[str, float]:
    """How far the parameters of each stage moved: ``||after - before|| / ||before||``, of the stages that both have.

    It is nan where they were all zero, such as those of a head of regression, or there are none.
    """
    first, second = (select_parameters(stages, dict.fromkeys(before, "all")) for stages in (before, after))
    return {name: relative_drift(zip(first[name], second[name], strict=True)) for name in second}


def linear_cka(first: Tensor, second: Tensor) -> float:
    """How alike two sets of features ``(N, C)`` and ``(N, D)`` of the same N images are, whatever their rotation.

    It is linear CKA (`Kornblith et al. 2019 <https://arxiv.org/abs/1905.00414>`_, equation 4) with the unbiased
    estimator of HSIC of Song et al. 2012, equation 5, as in `Nguyen et al. 2021 <https://arxiv.org/abs/2010.15327>`_,
    equation 3. With the biased one, features of more channels than there are images would always be alike. It is 1 for
    features that are equal but for rotation, shift and scale, near 0 for independent ones, and nan for constant ones.

    Raises:
        ValueError: If there are fewer than 4 images.
    """
    if len(first) < 4:
        raise ValueError(f"CKA needs 4 images at least, got {len(first)}")
    one, two = (_centred_products(features) for features in (first, second))
    lengths = math.sqrt(float((one * one).sum())) * math.sqrt(float((two * two).sum()))
    return float((one * two).sum()) / lengths if lengths else math.nan


def _centred_products(features: Tensor) -> Tensor:
    """The products of the features of any two images ``(N, N)``, U-centred: rows and diagonal sum to 0.

    The inner product of two such matrices is the estimator but for a factor (Székely and Rizzo 2014, Partial distance
    correlation with methods for dissimilarities, section 3).
    """
    features = features.detach().cpu().double()
    features = features - features.mean(dim=0)
    num, products = len(features), features @ features.T
    products.fill_diagonal_(0.0)
    rows = products.sum(dim=1) / (num - 2)
    products += products.sum() / ((num - 1) * (num - 2)) - rows[:, None] - rows
    return products.fill_diagonal_(0.0)


def measure_cka(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """`linear_cka` of the features ``(N, C)`` of each stage, before and after."""
    return {name: linear_cka(before[name], after[name]) for name in after}


def probe_stages(features: Mapping[str, Tensor], targets: Targets, folds: Tensor, what: str) -> dict[str, float]:
    """The out-of-fold score of a linear head on the features ``(N, C)`` of each stage.

    Args:
        features: The features of each stage.
        targets: The targets of the N images.
        folds: The fold of each image, for each repetition ``(R, N)``.
        what: What is probed, for the bar.
    """
    scores: dict[str, float] = {}

    def measure() -> Iterator[int]:
        for name, values in features.items():
            scores[name] = cross_validate(Basis(values.cpu()), targets, folds).accuracy
            yield 1

    log_progress(f"Stages {what}", measure(), len(features), unit="stages")
    return scores
