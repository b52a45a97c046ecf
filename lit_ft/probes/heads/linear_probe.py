"""Linear probes: a head on fixed features, solved to its optimum with a cross-validated penalty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_ft.data.folds import make_folds
from lit_ft.errors import UserError
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import STRENGTHS, CrossValidation, cross_validate
from lit_ft.probes.heads.solver import Problems, Targets, solve

DEFAULT_STRENGTH = STRENGTHS[3]
"""The penalty where there are too few images to choose one."""


@dataclass(frozen=True)
class LinearProbe:
    """A linear head for features as they are, and how well such heads predict images that they have not seen.

    Args:
        weight: ``(K, D)``, float64.
        bias: ``(K,)``, float64.
        l2: Strength of the penalty on the weights for scaled features; see `Basis`.
        validated: Out-of-fold results, or ``None`` where there are too few images.
    """

    weight: Tensor
    bias: Tensor
    l2: float
    validated: CrossValidation | None

    def __call__(self, features: Tensor) -> Tensor:
        """Features ``(B, D)`` -> logits ``(B, K)``."""
        return features @ self.weight.T.to(features) + self.bias.to(features)


def fit_linear_probe(
    features: Tensor,
    targets: Targets,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    num_folds: int = 5,
    seed: int = 0,
    max_validated: int = 10_000,
) -> LinearProbe:
    """Chooses the penalty by cross-validation, and solves the head on all images.

    The features are scaled by all images; see `Basis`. The bias has no penalty, so that the mean prediction is the
    share of each class. Few images are split into folds up to four times, 4,000 or more once.

    Args:
        features: ``(N, D)``.
        targets: The targets of the N images.
        weights: What each image counts ``(N,)``.
        groups: Group of each image ``(N,)``; no group comes in two folds.
        num_folds: Number of folds, if there are images enough.
        seed: Seed of the folds.
        max_validated: Of more images, so many are cross-validated, drawn at random; the head is solved on all.

    Raises:
        UserError: If features are not finite.
    """
    refuse_not_finite(features)
    drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:max_validated].sort().values
    few_weights, few_groups = (None if one is None else one[drawn] for one in (weights, groups))
    basis = Basis(features, dtype=torch.float64)
    few = basis.part(drawn, torch.float32)  # in which the penalty is chosen in half the time
    validated = _validate(few, targets.part(drawn), few_weights, few_groups, num_folds, seed)
    l2 = DEFAULT_STRENGTH if validated is None else float(validated.strengths[validated.best])
    counts = torch.ones(1, len(features), dtype=torch.float64) if weights is None else weights.unsqueeze(0)
    ((_, heads),) = solve(Problems(basis, targets, counts, torch.tensor([0]), torch.tensor([l2])), tolerance=1e-5)
    return LinearProbe(*basis.heads(heads[0]), l2, validated)


def _validate(
    basis: Basis, targets: Targets, weights: Tensor | None, groups: Tensor | None, num_folds: int, seed: int
) -> CrossValidation | None:
    try:
        folds = make_folds(targets.values, num_folds, max(1, min(4, 4000 // len(basis))), seed, groups)
    except ValueError:
        return None
    return cross_validate(basis, targets, folds, weights)


def refuse_equal(features: Tensor) -> None:
    """Raises `UserError` for features ``(N, D)`` that are the same for all of several images but for rounding."""
    least, most = features.amin(dim=0), features.amax(dim=0)
    # Equal images may differ in the last bits, by their place in a batch.
    if len(features) > 1 and bool((most - least).max() <= 1e-6 * torch.maximum(most.abs(), least.abs()).max()):
        raise UserError(f"the features of all {len(features)} images are equal; take other images, or other weights")


def refuse_not_finite(features: Tensor) -> None:
    """Raises `UserError` for features ``(N, D)`` that are not all finite."""
    finite = torch.cat([part.isfinite().all(dim=1).cpu() for part in torch.split(features, 4096)])
    if not finite.all():
        raise UserError(
            f"the features of {int((~finite).sum())} of {len(finite)} images are not finite, first those of image "
            f"{int((~finite).nonzero()[0])}; compute them in float32, or take other weights"
        )
