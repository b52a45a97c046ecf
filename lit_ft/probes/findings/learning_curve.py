"""Learning curves: accuracy by the number of labelled images a class, and what more of them would bring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.console import log_progress
from lit_ft.data.folds import held_out
from lit_ft.data.split import rows_by_class
from lit_ft.probes.heads.basis import Basis, full_precision
from lit_ft.probes.heads.solver import Problems, Targets, solve

_SIZES = (3, *(size * 10**power for power in range(6) for size in (1, 2, 5) if size * 10**power >= 5))

_AHEAD, _NUM_FITTED = 4, 33
"""A fitted curve ends at so many times the most images a class, and has so many points."""

_TOGETHER = 20_000
"""Draws of so many images together are solved at once; of large sets each by itself, on no more than its images."""


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy of linear probes that are trained on few images.

    Args:
        sizes: Most training images of a class ``(S,)``, ascending; the last has all of a fold.
        accuracies: Accuracy on the held-out images ``(S, R)`` of R draws.
        recalls: Recall of each class ``(S, K)``, over all draws.
    """

    sizes: list[int]
    accuracies: Tensor
    recalls: Tensor


def learning_curve(
    basis: Basis, targets: Targets, folds: Tensor, strengths: Sequence[float], seed: int = 0
) -> LearningCurve:
    """Solves heads on 3, 5, 10, 20, … images a class, once for each fold and repetition.

    The strength is the one whose mean loss on held-out images is least, for each size by itself.

    Args:
        basis: The features.
        targets: Their classes; the loss is ``softmax``.
        folds: The fold of each image ``(R, N)``.
        strengths: L2 penalties that are compared.
        seed: Seed of the draws; in each, fewer images are a subset of more.
    """
    held = held_out(folds)  # (draws, N)
    order = _draw_order(targets.values, ~held, seed)
    largest = int(order.where(~held, -1).max()) + 1
    sizes = [*(size for size in _SIZES if size <= 0.8 * largest), largest]
    curve: list[tuple[Tensor, Tensor]] = []

    def measure() -> Iterator[int]:
        for size in sizes:
            curve.append(_score(basis, targets, ~held & (order < size), held, strengths))
            yield 1

    log_progress("Learning curve", measure(), len(sizes), unit="sizes")
    return LearningCurve(sizes, *(torch.stack(parts) for parts in zip(*curve, strict=True)))


def _draw_order(classes: Tensor, may_draw: Tensor, seed: int) -> Tensor:
    """The place of each image in a random order of those of its class that may be drawn ``(draws, N)``."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.full(may_draw.shape, len(classes))
    for draw, allowed in enumerate(may_draw):
        for rows in rows_by_class(classes, 0):
            rows = rows[allowed[rows]]
            order[draw, rows[torch.randperm(len(rows), generator=generator)]] = torch.arange(len(rows))
    return order


def _score(
    basis: Basis, targets: Targets, trains: Tensor, held: Tensor, strengths: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Accuracy of each draw ``(R,)`` and recall of each class ``(K,)`` at the best strength."""
    draws = torch.split(trains, max(1, _TOGETHER // len(basis)))
    solved = [_solve(basis, targets, some, strengths) for some in draws]
    losses, right = (torch.cat(parts) for parts in zip(*solved, strict=True))
    best = int((losses * held.unsqueeze(1)).sum(dim=(0, 2)).argmin())
    hits = (right[:, best] * held).double()
    classes = torch.nn.functional.one_hot(targets.values, targets.num_outputs).double()
    return hits.sum(dim=1) / held.sum(dim=1), hits.sum(dim=0) @ classes / (held.sum(dim=0).double() @ classes)


@full_precision()
def _solve(basis: Basis, targets: Targets, trains: Tensor, strengths: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Loss of each image, and whether it is right, by heads of some draws at each strength ``(r, S, N)``."""
    rows = trains.any(dim=0).nonzero().squeeze(1)  # the others would only be multiplied by zero
    l2 = torch.tensor(strengths, dtype=torch.float64).repeat(len(trains))
    sample = torch.arange(len(trains)).repeat_interleave(len(strengths))
    problems = Problems(basis.part(rows), targets.part(rows), trains[:, rows].double(), sample, l2)
    losses, right = (torch.zeros(len(l2), len(basis)) for _ in range(2))
    for indices, heads in solve(problems, tolerance=3e-2):
        for start in range(0, len(basis), 4096):
            block = slice(start, min(start + 4096, len(basis)))
            features = basis[block]
            logits = (features @ heads.flatten(0, 1).T).view(len(features), len(heads), -1)
            wanted = targets.values[block].to(logits.device)
            part = (indices.cpu(), block)
            right[part] = (wanted == logits.argmax(dim=2).T).float().cpu()
            losses[part] = targets.losses(logits, block)[0].T.float().cpu()
    by_strength = (len(trains), len(strengths), len(basis))
    return losses.view(by_strength), right.view(by_strength)


@dataclass(frozen=True)
class Outlook:
    """What more images a class would bring, with 95% intervals; infinite where no number of them suffices.

    Args:
        more: Further images a class until the accuracy has risen by ``gain``: the middle, the least and the most.
        gain: The rise in accuracy.
        limit: Accuracy with any number of images: the middle, the least and the most.
        fitted: Images a class, and the accuracy that is fitted for them: the middle, the least and the most.
    """

    more: tuple[float, float, float]
    gain: float
    limit: tuple[float, float, float]
    fitted: list[tuple[float, float, float, float]]


def extrapolate(curve: LearningCurve, gain: float = 0.01, num_samples: int = 200, seed: int = 0) -> Outlook | None:
    """Fits the error ``a + b n**-c`` to the curve, and to bootstrap samples of its draws for the intervals.

    The power law is that of Hestness et al. 2017, Deep Learning Scaling is Predictable, Empirically, section 3.

    Returns:
        The outlook, or ``None`` for fewer than four sizes, through which any power law goes.
    """
    if len(curve.sizes) < 4:
        return None
    sizes, errors = np.array(curve.sizes, float), 1 - curve.accuracies.numpy()
    random = np.random.default_rng(seed)
    draws = random.integers(errors.shape[1], size=(num_samples, errors.shape[1]))
    fits = np.array([_fit(sizes, errors[:, draw].mean(axis=1)) for draw in draws])
    now = fits[:, 0] + fits[:, 1] * sizes[-1] ** -fits[:, 2]
    room = now - gain - fits[:, 0]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        more = np.where(room > 0, (fits[:, 1] / room) ** (1 / fits[:, 2]), math.inf) - sizes[-1]
    fitted = [
        (float(size), *_middle(1 - fits[:, 0] - fits[:, 1] * size ** -fits[:, 2]))
        for size in np.geomspace(sizes[0], _AHEAD * sizes[-1], _NUM_FITTED)
    ]
    return Outlook(_middle(more), gain, _middle(1 - fits[:, 0]), fitted)


def _fit(sizes: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """a, b and c; for each of several c, the other two by non-negative least squares."""
    from scipy.optimize import nnls

    best, least = np.zeros(3), math.inf
    for exponent in np.linspace(0.1, 2.0, 39):
        columns = np.stack([np.ones_like(sizes), sizes**-exponent], axis=1)
        (floor, factor), residual = nnls(columns, errors)
        if residual < least:
            best, least = np.array([floor, factor, exponent]), residual
    return best


def _middle(values: NDArray[np.float64]) -> tuple[float, float, float]:
    middle, least, most = np.quantile(values, [0.5, 0.025, 0.975], method="nearest")
    return float(middle), float(least), float(most)
