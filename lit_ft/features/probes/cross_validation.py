"""Cross-validation of linear heads on features: folds, the strength of the penalty, out-of-fold predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lit_ft.data.split import class_counts
from lit_ft.features.probes.basis import Basis
from lit_ft.features.probes.solver import Problems, Targets, solve

STRENGTHS = tuple(10 ** (x / 8) for x in range(-24, 17, 5))
"""L2 penalties that are compared, from 0.001 to 100; with standardised features the best lies well inside."""


def make_folds(
    targets: Tensor, num_folds: int = 5, repeats: int = 4, seed: int = 0, groups: Tensor | None = None
) -> Tensor:
    """The fold of each image, once for each repetition: ``(R, N)``, int64.

    Classes are spread evenly over the folds, and no group comes in two of them. There are fewer folds where the
    smallest class, or the number of groups, does not suffice for so many, but at least 2.

    Args:
        targets: Class of each image ``(N,)``; what has no classes, ``(N, K)``, is split regardless of it.
        num_folds: Number of folds.
        repeats: R, the number of times that the images are split anew.
        seed: Seed of the splits.
        groups: Group of each image ``(N,)``.

    Raises:
        ValueError: If a class has a single image, or there are fewer than two images or groups.
    """
    from sklearn import model_selection as sk  # slow to load

    num_folds = usable_folds(targets, num_folds, groups)
    strata = targets.cpu().numpy() if targets.ndim == 1 else np.zeros(len(targets), np.int64)
    folds = torch.empty(repeats, len(targets), dtype=torch.long)
    for repeat in range(repeats):
        options = {"n_splits": num_folds, "shuffle": True, "random_state": seed + repeat}
        splitter = sk.StratifiedKFold(**options) if groups is None else sk.StratifiedGroupKFold(**options)
        for fold, (_, held) in enumerate(splitter.split(strata, strata, groups)):
            folds[repeat, torch.from_numpy(held)] = fold
    return folds


def usable_folds(targets: Tensor, num_folds: int, groups: Tensor | None = None) -> int:
    """The number of folds, or the largest that the smallest class and the groups allow.

    Raises:
        ValueError: If that is below 2.
    """
    num_units = len(targets) if groups is None else len(np.unique(groups))
    most = min(num_folds, num_units)
    if targets.ndim == 1:
        most = min(most, min(n for n in class_counts(targets, 0) if n))
    if most < 2:
        raise ValueError("cross-validation needs at least two images of each class, and two groups")
    return most


@dataclass(frozen=True)
class CrossValidation:
    """Out-of-fold results of linear heads.

    Args:
        folds: The fold of each image ``(R, N)``.
        strengths: L2 penalties ``(S,)``.
        losses: Mean loss of the held-out images ``(R, F, S)``, with the weights of the classes.
        logits: Logits ``(R, N, K)`` of each image, of heads with the best strength that have not seen it.
        targets: What was to be predicted.
    """

    folds: Tensor
    strengths: Tensor
    losses: Tensor
    logits: Tensor
    targets: Targets

    @property
    def best(self) -> int:
        """Index of the strength whose mean loss is least."""
        return best_strength(self.losses)

    @cached_property
    def correct(self) -> Tensor:
        """Whether each image is classified right out of fold ``(R, N)``; for labels the share that is."""
        if self.targets.loss == "softmax":
            return (self.logits.argmax(dim=2) == self.targets.values).double()
        return ((self.logits > 0) == (self.targets.values > 0.5)).double().mean(dim=2)

    @property
    def accuracy(self) -> float:
        """Mean out-of-fold accuracy."""
        return float(self.correct.mean())

    def accuracy_interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy.

        The scores of overlapping training sets depend on each other; their variance is corrected as Nadeau and Bengio
        2003, Inference for the Generalization Error, equation 7, do.
        """
        num_folds = int(self.folds.max()) + 1
        scores = torch.stack([self.correct[self.folds == fold].mean() for fold in range(num_folds)])
        if len(self.folds) > 1:
            scores = torch.stack([r[f == fold].mean() for r, f in zip(self.correct, self.folds, strict=True)
                                  for fold in range(num_folds)])  # fmt: skip
        return corrected_interval(scores, 1 / (num_folds - 1))


def corrected_interval(scores: Tensor, test_share: float) -> tuple[float, float]:
    """The 95% interval of the mean of J scores of repeated folds ``(J,)``, within 0 and 1.

    Args:
        scores: Score of each fold.
        test_share: Number of held-out images divided by that of training images.
    """
    from scipy.stats import t

    deviation = math.sqrt((1 / len(scores) + test_share) * float(scores.var()))
    half, mean = float(t.ppf(0.975, len(scores) - 1)) * deviation, float(scores.mean())
    return max(0.0, mean - half), min(1.0, mean + half)


def best_strength(losses: Tensor) -> int:
    """Index of the strength with the least mean of losses ``(..., S)``."""
    return int(losses.flatten(0, -2).mean(dim=0).argmin())


def cross_validate(
    basis: Basis, targets: Targets, folds: Tensor, weights: Tensor | None = None,
    strengths: tuple[float, ...] = STRENGTHS,
) -> CrossValidation:  # fmt: skip
    """Solves the heads of all folds and strengths, chooses the strength, and predicts each image out of fold.

    Args:
        basis: The features of N images.
        targets: Their targets.
        folds: The fold of each image ``(R, N)``.
        weights: What each image counts ``(N,)``, in training and in the losses; by default 1.
        strengths: L2 penalties.
    """
    num_folds = int(folds.max()) + 1
    weights = torch.ones(len(basis), dtype=torch.float64) if weights is None else weights.double().cpu()
    held = (folds.unsqueeze(1) == torch.arange(num_folds).view(1, -1, 1)).flatten(0, 1)  # (R F, N)
    l2 = torch.tensor(strengths, dtype=torch.float64)
    samples = torch.arange(len(held)).repeat_interleave(len(l2))
    problems = Problems(basis, targets, ~held * weights, samples, l2.repeat(len(held)))
    totals = torch.zeros(len(samples), dtype=torch.float64)
    for indices, heads in solve(problems, tolerance=1e-2):
        counted = held[samples[indices.cpu()]] * weights
        totals[indices.cpu()] = _losses(basis, targets, heads, counted).cpu()
    losses = (totals.view(len(held), -1) / (held * weights).sum(dim=1, keepdim=True)).view(len(folds), num_folds, -1)
    best = l2[best_strength(losses)].repeat(len(held))
    logits = torch.zeros(len(folds), len(basis), targets.num_outputs)
    for indices, heads in solve(Problems(basis, targets, ~held * weights, torch.arange(len(held)), best), 1e-3):
        for index, head in zip(indices.tolist(), heads, strict=True):
            repeat, rows = index // num_folds, held[index].nonzero().squeeze(1)
            for part in torch.split(rows, 4096):
                logits[repeat, part] = (basis.rows_at(part) @ head.T).float().cpu()
    return CrossValidation(folds, l2, losses, logits, targets)


def _losses(basis: Basis, targets: Targets, heads: Tensor, counted: Tensor) -> Tensor:
    """Sums of the losses of heads ``(P, K, width)`` over images that count ``(P, N)``."""
    total = torch.zeros(len(heads), dtype=torch.float64, device=heads.device)
    step = max(1, (1 << 20) // (len(heads) * targets.num_outputs))
    for start in range(0, len(basis), step):
        rows = basis.rows(start, min(start + step, len(basis)))
        logits = (rows @ heads.flatten(0, 1).T).view(len(rows), len(heads), -1)
        losses, _ = targets.losses(logits, start)
        total += (losses.double() * counted[:, start : start + step].T.to(losses.device)).sum(dim=0)
    return total
