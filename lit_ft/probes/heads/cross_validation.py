"""Cross-validation of linear heads on features: the strength of the penalty, out-of-fold predictions, intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lit_ft.console import log_progress
from lit_ft.data.folds import held_out
from lit_ft.probes.heads.basis import Basis, full_precision
from lit_ft.probes.heads.solver import Problems, Targets, solve

_PATIENCE = 2

STRENGTHS = tuple(10 ** (x / 8) for x in range(-24, 17, 5))
"""L2 penalties that are compared, from 0.001 to 100; with scaled features the best lies well inside."""


@dataclass(frozen=True)
class CrossValidation:
    """Out-of-fold results of linear heads.

    Args:
        folds: The fold of each image ``(R, N)``; -1 for those that are never held out.
        strengths: L2 penalties ``(S,)``.
        losses: Mean loss of the held-out images ``(R, F, S)``, as it is solved for; infinite where not computed.
        logits: Logits ``(R, N, K)`` of each image, of heads with the best strength that have not seen it; NaN for
            those that are never held out.
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
        """Whether each image is right out of fold ``(R, N)``; see `Targets.correct`."""
        return self.targets.correct(self.logits)

    @property
    def accuracy(self) -> float:
        """Mean out-of-fold accuracy; for numbers R2."""
        return float(self.correct[self.folds >= 0].mean())

    @property
    def loss(self) -> float:
        """Mean loss of the held-out images with the best strength, as an evaluation has it."""
        return float(self.losses[..., self.best].mean()) * self.targets.loss_scale

    @cached_property
    def fold_accuracies(self) -> Tensor:
        """Accuracy in each fold of each repetition ``(R F,)``."""
        repeats, num_folds = zip(self.correct, self.folds, strict=True), int(self.folds.max()) + 1
        return torch.stack([correct[folds == fold].mean() for correct, folds in repeats for fold in range(num_folds)])

    def accuracy_interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy, within 0 and 1; for numbers, of R2.

        It is no narrower than that of one test on as many images: few may all be right in each fold.
        """
        least, most = corrected_interval(self.fold_accuracies, 1 / int(self.folds.max()))
        if self.targets.loss == "squared":
            return least, min(1.0, most)
        return widen_by_wilson((least, most), self.accuracy, int((self.folds[0] >= 0).sum()))


def corrected_interval(scores: Tensor, test_share: float) -> tuple[float, float]:
    """The 95% interval of the mean of J scores of repeated folds ``(J,)``.

    The scores of overlapping training sets depend on each other; their variance is corrected as Nadeau and Bengio
    2003, Inference for the Generalization Error, equation 7, do.

    Args:
        scores: Score of each fold.
        test_share: Number of held-out images divided by that of training images.
    """
    from scipy.stats import t

    deviation = math.sqrt((1 / len(scores) + test_share) * float(scores.var()))
    half, mean = float(t.ppf(0.975, len(scores) - 1)) * deviation, float(scores.mean())
    return mean - half, mean + half


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of ``count`` independent trials (Wilson 1927, Probable Inference).

    >>> [round(bound, 3) for bound in wilson_interval(1.0, 12)]
    [0.757, 1.0]
    """
    squared = 1.96**2 / count
    half = math.sqrt(squared * share * (1 - share) + squared**2 / 4)
    return (share + squared / 2 - half) / (1 + squared), (share + squared / 2 + half) / (1 + squared)


def widen_by_wilson(ends: tuple[float, float], share: float, count: int) -> tuple[float, float]:
    """An interval of a share, no narrower than that of ``count`` independent trials, and within 0 and 1.

    >>> widen_by_wilson((1.0, 1.0), 1.0, 12)[0] == wilson_interval(1.0, 12)[0]
    True
    """
    single = wilson_interval(share, count)
    return max(0.0, min(ends[0], single[0])), min(1.0, max(ends[1], single[1]))


def best_strength(losses: Tensor) -> int:
    """Index of the strength with the least mean of losses ``(..., S)``."""
    return int(losses.flatten(0, -2).mean(dim=0).argmin())


def cross_validate(
    basis: Basis, targets: Targets, folds: Tensor, weights: Tensor | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> CrossValidation:  # fmt: skip
    """Solves the heads of all folds, one strength after the other, and predicts each image out of fold.

    It begins with the strongest penalty, whose heads are where those of the next begin. Two strengths after the one
    with the least mean loss it ends, as ever weaker penalties fit ever more and take ever longer.

    Args:
        basis: The features of N images.
        targets: Their targets.
        folds: The fold of each image ``(R, N)``.
        weights: What each image counts ``(N,)``, in training and in the losses; by default 1.
        strengths: L2 penalties, ascending.
    """
    weights = torch.ones(len(basis), dtype=torch.float64) if weights is None else weights.double().cpu()
    held = held_out(folds)
    l2 = torch.tensor(strengths, dtype=torch.float64)
    losses = torch.full((len(held), len(l2)), math.inf, dtype=torch.float64)
    best, logits, heads = len(l2), torch.empty(0), None

    def measure() -> Iterator[int]:
        nonlocal best, logits, heads
        for index in range(len(l2) - 1, -1, -1):
            problems = Problems(basis, targets, ~held * weights, torch.arange(len(held)), l2[index].expand(len(held)))
            heads = torch.cat([part for _, part in solve(problems, tolerance=1e-2, start=heads)])
            losses[:, index], these = _predict_held_out(basis, targets, heads, held, folds, weights)
            if best == len(l2) or losses[:, index].mean() < losses[:, best].mean():
                best, logits = index, these
            elif index <= best - _PATIENCE:
                break
            yield 1

    log_progress("Cross-validation", measure(), len(l2), unit="penalties")
    return CrossValidation(folds, l2, losses.view(len(folds), -1, len(l2)), logits, targets)


@full_precision()
def _predict_held_out(
    basis: Basis, targets: Targets, heads: Tensor, held: Tensor, folds: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss of the held-out images of each head ``(R F,)``, and the logits ``(R, N, K)``."""
    total = torch.zeros(len(held), dtype=torch.float64)
    logits = torch.full((len(folds), len(basis), targets.num_outputs), math.nan)
    for index, (head, is_held) in enumerate(zip(heads, held, strict=True)):
        for rows in torch.split(is_held.nonzero().squeeze(1), 4096):
            found = basis[rows] @ head.T
            logits[index * len(folds) // len(held), rows] = found.float().cpu()
            loss, _ = targets.losses(found.unsqueeze(1), rows)
            total[index] += weights[rows] @ loss.squeeze(1).double().cpu()
    return total / (held * weights).sum(dim=1), logits
