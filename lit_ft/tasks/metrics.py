"""Metrics: sums in full precision, R2, and means over the classes that a split has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric


class PreciseSums(Metric):
    """Holds its sums as float64, whatever the precision of the network; as float32 on devices without float64."""

    def add_state(self, name: str, default: Any, *args: Any, **options: Any) -> None:
        """Adds a sum."""
        is_float = isinstance(default, Tensor) and default.is_floating_point()
        super().add_state(name, default.double() if is_float else default, *args, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Moves the sums, but leaves their type: a trainer with precision bf16-true converts whatever a module has."""

        def move(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor).to(tensor.dtype)
            except TypeError:  # of MPS, which has no float64
                return fn(tensor.float())

        return super()._apply(move, exclude_state)


class MeanLoss(PreciseSums, MeanMetric):
    """The mean of all values."""

    def __init__(self) -> None:
        # Repeated for each image, as with "disable" torchmetrics passes over weights; but otherwise over nan.
        super().__init__(nan_strategy="disable")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the sum, in which values are added, whatever torch's default type is then."""
        return self.mean_value.dtype

    def compute(self) -> Tensor:
        """The mean, as float32."""
        mean: Tensor = super().compute()
        return mean.float()


class R2(PreciseSums):
    """The coefficient of determination, 1 - (squared errors) / (squared deviations from the mean target).

    It is computed for each of K targets, ``num_outputs``, and then averaged. Where a target has one value only, it is
    not defined, and is left out; where each has, it is nan.

    Deviations are from the mean of what was seen, and the parts of batches and processes are put together as in `Chan
    et al. 1983 <https://doi.org/10.1080/00031305.1983.10483115>`_, so that no offset costs digits.
    """

    num: Tensor
    mean: Tensor
    deviations: Tensor
    errors: Tensor

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self._num_outputs = num_outputs
        # Without a reduction, all processes' parts come to `compute` one upon the other.
        self.add_state("num", torch.zeros(1), dist_reduce_fx=None)
        for name in ("mean", "deviations", "errors"):
            self.add_state(name, torch.zeros(num_outputs), dist_reduce_fx=None)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a batch ``(B, K)``."""
        mean = target.mean(dim=0)
        parts = (
            torch.stack([self.num, torch.full_like(self.num, len(target))]),
            torch.stack([self.mean, mean.to(self.mean.dtype)]),
            torch.stack([self.deviations, (target - mean).square().sum(dim=0).to(self.mean.dtype)]),
        )
        self.num, self.mean, self.deviations = _merged(*parts)
        self.errors = self.errors + (preds - target).square().sum(dim=0)

    def compute(self) -> Tensor:
        """The mean over the targets, as float32."""
        shape = (-1, self._num_outputs)
        num, mean, deviations = _merged(
            self.num.reshape(-1, 1), self.mean.reshape(shape), self.deviations.reshape(shape)
        )
        errors = self.errors.reshape(shape).sum(dim=0)
        # The rounding errors of equal numbers are no deviation.
        is_defined = deviations > num * (4 * torch.finfo(mean.dtype).eps * mean.abs()).square()
        values = (1 - errors / deviations).where(is_defined, 0)
        return (values.sum() / is_defined.sum()).float()


def _merged(num: Tensor, mean: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number ``(1,)``, mean ``(K,)`` and squared deviations ``(K,)`` of parts, one a row."""
    total = num.sum(dim=0)
    shares = num / total.clamp(min=1)
    # From the first part's that is any, so that equal means stay what they are.
    first = mean.index_select(0, num.flatten().argmax().view(1)).squeeze(0)  # by a number, a GPU would be waited for
    merged = first + (shares * (mean - first)).sum(dim=0)
    return total, merged, deviations.sum(dim=0) + (num * (mean - merged).square()).sum(dim=0)


class OverPresent(Metric):
    """The mean over those classes, or labels, that the images of a split have; to be mixed in before a metric.

    Of a class without an image recall is not defined, and precision and F1 can only be 0, which torchmetrics counts for
    every label, and for a class that was predicted. The metric must be made with ``average="none"``.
    """

    absent: Tensor | None = None
    """Which classes no image had, bool ``(K,)``, when it was last computed; of all processes together."""

    def compute(self) -> Tensor:
        """The mean, or 0 where there is no class at all."""
        counts = cast(Any, self)
        present: Tensor = counts.tp + counts.fn > 0
        self.absent = ~present
        values: Tensor = super().compute()  # type: ignore[safe-super]  # that of the metric it is mixed into
        return values.where(present, 0).sum() / present.sum().clamp(min=1)
