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
    num, width = features.shape
    alpha, beta = torch.ones(wanted.shape[1], dtype=torch.float64), torch.ones(wanted.shape[1], dtype=torch.float64)
    for _ in range(100):
        before = alpha / beta
        weights, errors = _posterior(squared, projected, outside, alpha, beta)
        known = (beta * squared / (alpha + beta * squared)).sum(dim=0)
        alpha, beta = known / weights.clamp(min=1e-30), (num - known) / errors.clamp(min=1e-30)
        if bool(((alpha / beta - before).abs() <= 1e-6 * before).all()):
            break
    weights, errors = _posterior(squared, projected, outside, alpha, beta)
    log_det = (alpha + beta * squared).log().sum(dim=0) + (width - len(singular)) * alpha.log()
    evidence = num * (beta / (2 * math.pi)).log() + width * alpha.log() - beta * errors - alpha * weights - log_det
    return float(evidence.mean() / (2 * num))


def _posterior(
    squared: Tensor, projected: Tensor, outside: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared length of the mean weights, and sum of squared errors, of each output ``(K,)``."""
    ratio = alpha / beta
    weights = (squared * projected / (ratio + squared).square()).sum(dim=0)
    errors = ((ratio / (ratio + squared)).square() * projected).sum(dim=0) + outside
    return weights, errors
