"""Linear heads on features, solved to their optimum: many at once, on one copy of the features."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_ft.probes.heads.basis import Basis, full_precision

Loss = Literal["softmax", "sigmoid", "squared"]

LOSSES: dict[str, Loss] = {"multiclass": "softmax", "multilabel": "sigmoid", "regression": "squared"}
"""The loss of each task."""

CURVATURE: dict[Loss, float] = {"softmax": 0.5, "sigmoid": 0.25, "squared": 1.0}
"""Upper bound of the second derivative of each loss (Böhning 1992, Multinomial logistic regression algorithm)."""

_HISTORY = 6
"""Steps that L-BFGS remembers."""

_MEMORY = 1 << 30
"""Bytes that the state of L-BFGS may take; more problems are solved one part after the other."""

_CHUNK_VALUES = 1 << 18
"""Logits that are computed at once on a CPU, whose cache they should fit."""


@dataclass(frozen=True)
class Targets:
    """What heads with K outputs are to predict for N images.

    Args:
        loss: ``softmax`` for one class of K, ``sigmoid`` for K labels that are independent of each other, ``squared``
            for K numbers.
        values: For ``softmax`` the classes ``(N,)``, else the labels (0 to 1) or numbers ``(N, K)``.
        num_outputs: K.
        positive_weight: For ``sigmoid``, what the positives of each label count ``(K,)``.
    """

    loss: Loss
    values: Tensor
    num_outputs: int
    positive_weight: Tensor | None = None

    def part(self, rows: Tensor) -> Targets:
        """The targets of some images."""
        return replace(self, values=self.values[rows])

    @property
    def loss_scale(self) -> float:
        """Factor from `losses` to the loss of an evaluation: a mean over labels or numbers, of numbers not halved."""
        return {"softmax": 1.0, "sigmoid": 1 / self.num_outputs, "squared": 2 / self.num_outputs}[self.loss]

    def correct(self, logits: Tensor) -> Tensor:
        """Whether each image is right by logits ``(..., N, K)``, for labels the share that is: ``(..., N)``, float64.

        For numbers it is 1 minus the squared error in units of their variance, whose mean is R2.
        """
        if self.loss == "softmax":
            return (logits.argmax(dim=-1) == self.values).double()
        if self.loss == "sigmoid":
            return ((logits > 0) == (self.values > 0.5)).double().mean(dim=-1)
        values = self.values.double()
        variance = values.var(dim=0, correction=0).clamp(min=1e-30)
        return 1 - ((logits.double() - values).square() / variance).mean(dim=-1)

    def losses(self, logits: Tensor, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The loss of some images, and its gradient by the logits.

        Args:
            logits: ``(B, P, K)`` of P problems; overwritten.
            rows: Which B images.

        Returns:
            Losses ``(B, P)``, summed over labels, or half the sum over numbers, and the gradient ``(B, P, K)``.
        """
        values = self.values[rows].to(logits.device)
        if self.loss == "softmax":
            index = values.view(-1, 1, 1).expand(-1, logits.shape[1], 1)
            chosen = logits.gather(2, index).squeeze(2)
            top = logits.amax(dim=2, keepdim=True)
            shares = logits.sub_(top).exp_()
            total = shares.sum(dim=2, keepdim=True)
            losses = total.log().add_(top).squeeze(2).sub_(chosen)
            shares.div_(total).scatter_add_(2, index, shares.new_full((1, 1, 1), -1.0).expand(index.shape))
            return losses, shares
        wanted = values.to(logits.dtype).unsqueeze(1).expand_as(logits)
        if self.loss == "squared":
            errors = logits - wanted
            return errors.square().sum(dim=2) / 2, errors
        weight = None if self.positive_weight is None else self.positive_weight.to(logits)
        losses = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none").sum(dim=2)
        shares = logits.sigmoid()
        if weight is None:
            return losses, shares.sub_(wanted)
        return losses, shares * (1 + (weight - 1) * wanted) - weight * wanted


def weigh_classes(
    targets: Targets, class_weight: Tensor | None, is_balanced: bool = False
) -> tuple[Targets, Tensor | None]:
    """Targets, and what each image counts ``(N,)``, as in a training with class weights or balanced sampling.

    Args:
        targets: The targets.
        class_weight: What each class counts ``(K,)``, for labels their positives; none for numbers.
        is_balanced: Whether images are drawn so that all classes are equally frequent.
    """
    if targets.loss == "sigmoid":
        return replace(targets, positive_weight=class_weight), None
    if targets.loss == "softmax" and is_balanced:
        class_weight = torch.bincount(targets.values, minlength=targets.num_outputs).reciprocal()
    return targets, None if class_weight is None or targets.loss == "squared" else class_weight[targets.values]


class Problems:
    """P heads to be solved: each minimises its weighted mean loss plus ``l2 / 2`` times its squared weights.

    The bias has no penalty. scikit-learn's ``C`` is ``1 / (l2 * sum of weights)``.

    Args:
        basis: The features.
        targets: The targets.
        weights: What each image counts ``(S, N)`` in S samples, such as folds, bootstrap samples or subsets.
        sample: Which sample each problem uses ``(P,)``.
        l2: Strength of the penalty of each problem ``(P,)``.
    """

    def __init__(self, basis: Basis, targets: Targets, weights: Tensor, sample: Tensor, l2: Tensor) -> None:
        self.basis, self.targets = basis, targets
        self.weights = (weights / weights.sum(dim=1, keepdim=True)).T.to(basis.device, basis.dtype).contiguous()
        self.sample, self.l2 = sample.to(basis.device), l2.to(basis.device, torch.float64)

    def select(self, which: Tensor) -> Problems:
        """Some of the problems."""
        some = copy(self)
        some.sample, some.l2 = self.sample[which], self.l2[which]
        return some

    def value_and_gradient(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """The objective ``(P,)``, float64, and its gradient ``(P, K, width)`` at heads ``(P, K, width)``."""
        num_problems, num_outputs, width = heads.shape
        flat = heads.view(-1, width)
        value = torch.zeros(num_problems, dtype=torch.float64, device=heads.device)
        gradient = torch.zeros_like(flat)
        step = max(1, _CHUNK_VALUES * (1 if heads.device.type == "cpu" else 256) // len(flat))
        for start in range(0, len(self.basis), step):
            rows = slice(start, min(start + step, len(self.basis)))
            features = self.basis[rows]
            logits = (features @ flat.T).view(len(features), num_problems, num_outputs)
            losses, errors = self.targets.losses(logits, rows)
            weights = self.weights[rows][:, self.sample]
            value += (losses * weights).sum(dim=0, dtype=torch.float64)
            gradient.addmm_(errors.mul_(weights.unsqueeze(2)).flatten(1).T, features)
        gradient = gradient.view_as(heads)
        l2 = self.l2.to(heads.dtype).view(-1, 1, 1)
        gradient[..., :-1] += l2 * heads[..., :-1]
        return value + self.l2 / 2 * heads[..., :-1].double().square().sum(dim=(1, 2)), gradient


def solve(
    problems: Problems, tolerance: float = 1e-4, max_steps: int = 1000, start: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Solves the problems by L-BFGS, preconditioned with the bound of the Hessian.

    Each problem has a step size and stops on its own (Nocedal and Wright 2006, Numerical Optimization, ch. 7).

    Args:
        problems: The problems.
        tolerance: Stop when the weights are this near to the optimum, relative to their size. By strong convexity
            their distance from it is at most the norm of the gradient divided by ``l2``.
        max_steps: Largest number of steps.
        start: Heads to begin with ``(P, K, width)``; by default zeros.

    Yields:
        The indices ``(p,)`` of some problems and their optimal heads ``(p, K, width)``, as many as fit the memory.
    """
    basis = problems.basis
    head_bytes = problems.targets.num_outputs * basis.width * basis.dtype.itemsize
    size = max(1, _MEMORY // (head_bytes * (2 * _HISTORY + 10)))
    for indices in torch.split(torch.arange(len(problems.l2), device=basis.device), size):
        shape = (len(indices), problems.targets.num_outputs, basis.width)
        heads = torch.zeros(shape, dtype=basis.dtype, device=basis.device) if start is None else start[indices]
        yield indices, _solve(problems.select(indices), heads, tolerance, max_steps)


@full_precision()
def _solve(problems: Problems, heads: Tensor, tolerance: float, max_steps: int) -> Tensor:
    state = _Lbfgs(problems, heads)
    solved, active = state.heads.clone(), torch.arange(len(state.heads), device=state.heads.device)
    for step in range(max_steps):
        state.step()
        if step % 4 != 3:  # a look costs a wait for the device
            continue
        is_done = state.is_done(tolerance)
        if is_done.all():
            break
        if is_done.float().mean() > 0.15:
            solved[active] = state.heads
            active = active[~is_done]
            state.keep(~is_done)
    solved[active] = state.heads
    return solved


class _Lbfgs:
    """The state of L-BFGS for all problems that are not solved yet."""

    def __init__(self, problems: Problems, heads: Tensor) -> None:
        self.problems, self.heads = problems, heads
        self.value, self.gradient = problems.value_and_gradient(heads)
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []
        self.rate = torch.ones(len(heads), dtype=heads.dtype, device=heads.device)
        self.inverse = self._inverse_bound()
        self.direction = self._find_direction()

    def _inverse_bound(self) -> Tensor:
        basis, l2 = self.problems.basis, self.problems.l2.to(self.heads.dtype)
        bound = CURVATURE[self.problems.targets.loss] * basis.curvature + l2[:, None]
        bound[:, -1] = CURVATURE[self.problems.targets.loss]
        return bound.reciprocal().unsqueeze(1)

    def _find_direction(self) -> Tensor:
        direction, factors = -self.gradient, []
        for step, change, inverse in reversed(self.history):
            factor = inverse * _dot(step, direction)
            direction.sub_(factor.view(-1, 1, 1) * change)
            factors.append(factor)
        direction *= self.inverse
        if self.history:
            step, change, inverse = self.history[-1]
            squared = _dot(change, change * self.inverse)
            scale = torch.where(inverse > 0, 1 / (inverse * squared).clamp(min=1e-30), 1.0)
            direction *= scale.clamp(0.1, 100.0).view(-1, 1, 1)
        for (step, change, inverse), factor in zip(self.history, reversed(factors), strict=True):
            direction.add_((factor - inverse * _dot(change, direction)).view(-1, 1, 1) * step)
        return direction

    def step(self) -> None:
        """Moves the problems whose objective falls, and halves the step size of the others."""
        step = self.rate.view(-1, 1, 1) * self.direction
        heads = self.heads + step
        value, gradient = self.problems.value_and_gradient(heads)
        expected = _dot(self.gradient, step).double()
        noise = 4 * torch.finfo(heads.dtype).eps * (1 + self.value.abs())
        is_better = value <= self.value + 1e-4 * expected + noise
        moved = is_better.view(-1, 1, 1)
        step, change = step * moved, (gradient - self.gradient) * moved
        product = _dot(step, change)
        is_curved = product > 1e-10 * _dot(step, step)
        inverse = torch.where(is_curved, 1 / product.clamp(min=1e-30), 0.0)
        self.history = [*self.history, (step, change, inverse)][-_HISTORY:]
        self.heads = self.heads + step
        self.value = torch.where(is_better, value, self.value)
        self.gradient = self.gradient + change
        self.rate = torch.where(is_better, 1.0, self.rate / 2)
        self.direction = self._find_direction()

    def is_done(self, tolerance: float) -> Tensor:
        """Which problems are solved, or cannot be solved better in this arithmetic."""
        distance = self.gradient.flatten(1).norm(dim=1) / self.problems.l2.to(self.heads.dtype)
        is_near = distance <= tolerance * self.heads.flatten(1).norm(dim=1).clamp(min=1e-12)
        is_done: Tensor = is_near | (self.rate < 1e-3)
        return is_done

    def keep(self, which: Tensor) -> None:
        """Goes on with some of the problems."""
        self.problems = self.problems.select(which)
        names = ("heads", "value", "gradient", "rate", "inverse", "direction")
        self.__dict__.update({name: self.__dict__[name][which] for name in names})
        self.history = [(step[which], change[which], inverse[which]) for step, change, inverse in self.history]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(first.flatten(1), second.flatten(1))
    return product
