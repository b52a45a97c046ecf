"""LogME: how well features explain targets, without training."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def logme(features: Tensor, targets: Tensor) -> float:
    """The mean log evidence of an image under Bayesian linear regression, averaged over the outputs.

    For each output, the precisions of prior and noise are those that maximise the evidence, found by the fixed-point
    iteration of You et al. 2021, LogME: Practical Assessment of Pre-trained Models for Transfer Learning, algorithm 1.

    Args:
        features: ``(N, D)``.
        targets: Classes ``(N,)``, or labels or numbers ``(N, K)``.
    """
    features = features.double()
    wanted = (F.one_hot(targets) if targets.ndim == 1 else targets).double()
    left, singular, _ = torch.linalg.svd(features, full_matrices=False)
    squared = singular.square().unsqueeze(1)  # (r, 1)
    projected = (left.T @ wanted).square()  # (r, K)
    outside = (wanted.square().sum(dim=0) - projected.sum(dim=0)).clamp(min=0)  # what no features explain
    num, rank = len(features), len(singular)
    # Where features tell nothing, or everything, the best ratio of prior to noise is infinite, or 0.
    least, most = (float(squared.max().clamp(min=1e-30)) * bound for bound in (1e-12, 1e12))
    ratio, beta = (torch.ones(wanted.shape[1], dtype=torch.float64) for _ in range(2))
    for _ in range(100):
        before = ratio
        weights, errors = _posterior(squared, projected, outside, ratio)
        known = (squared / (ratio + squared)).sum(dim=0)
        unknown = num - rank + (ratio / (ratio + squared)).sum(dim=0)
        beta = unknown / errors.clamp(min=1e-30)
        ratio = (known / weights.clamp(min=1e-30) / beta).clamp(least, most)
        if bool(((ratio - before).abs() <= 1e-6 * before).all()):
            break
    weights, errors = _posterior(squared, projected, outside, ratio)
    shrinkage = (ratio / (ratio + squared)).log().sum(dim=0)
    evidence = num * (beta / (2 * math.pi)).log() - beta * (errors + ratio * weights) + shrinkage
    return float(evidence.mean() / (2 * num))


def _posterior(squared: Tensor, projected: Tensor, outside: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Squared length of the mean weights, and sum of squared errors, of each output ``(K,)``."""
    weights = (squared * projected / (ratio + squared).square()).sum(dim=0)
    errors = ((ratio / (ratio + squared)).square() * projected).sum(dim=0) + outside
    return weights, errors
