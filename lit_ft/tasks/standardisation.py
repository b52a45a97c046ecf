"""Standardisation of regression targets: mean 0 and deviation 1 in training, the user's units in predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn


@dataclass(frozen=True)
class Standardisation:
    """Mean and scale of each regression target.

    Args:
        mean: The mean that is subtracted from each of the K targets.
        scale: The scale by which each is then divided.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, targets: Tensor) -> Standardisation:
        """The mean and standard deviation of training targets ``(N, K)``, and a scale of 1 for a constant."""
        targets = targets.detach().cpu().double()
        mean = targets.mean(dim=0)
        deviations = targets - mean
        # By the largest deviation first, so that no square leaves the range of a float.
        largest = deviations.abs().amax(dim=0)
        is_fixed = targets.amax(dim=0) == targets.amin(dim=0)
        scale = (deviations / largest.masked_fill(is_fixed, 1.0)).square().mean(dim=0).sqrt() * largest
        return cls(tuple(mean.where(~is_fixed, targets[0]).tolist()), tuple(scale.masked_fill(is_fixed, 1.0).tolist()))

    @classmethod
    def from_plain(cls, given: Mapping[str, Sequence[float]]) -> Standardisation:
        """The standardisation in the plain form of a checkpoint."""
        return cls(tuple(given["mean"]), tuple(given["scale"]))

    def plain(self) -> dict[str, list[float]]:
        """The plain form of a checkpoint."""
        return {"mean": list(self.mean), "scale": list(self.scale)}

    @classmethod
    def none(cls, num: int) -> Standardisation:
        """The standardisation that changes nothing."""
        return cls((0.0,) * num, (1.0,) * num)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # numbers that become tensors would break the graph
    def standardise(self, targets: Tensor) -> Tensor:
        """Targets ``(B, K)``, or ``(B,)`` where K is 1 -> ``(B, K)`` of mean 0 and scale 1, in `precise` numbers."""
        given = precise(targets).reshape(len(targets), len(self.mean))
        return (given - _tensor(self.mean, given.device)) / _tensor(self.scale, given.device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def restore(self, values: Tensor) -> Tensor:
        """Standardised targets or predictions ``(B, K)`` -> in the units of the targets."""
        centred: Tensor = self.centred(values)
        return centred + _tensor(self.mean, values.device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def centred(self, values: Tensor) -> Tensor:
        """Likewise, but without the mean, beside which small differences would be lost in float32."""
        return precise(values) * _tensor(self.scale, values.device)


def read_standardisation(data: Any, num: int, is_needed: bool) -> Standardisation | None:
    """Mean and scale of a data module's K training targets for regression, or None where it does not give them.

    Raises:
        UserError: If they are needed, as by a head that starts at the mean, and not given.
    """
    targets = data.train_targets() if hasattr(data, "train_targets") else None
    if targets is not None:
        return Standardisation.of(targets.reshape(len(targets), num))
    unknown = "the data module has no train_targets()"
    advice = "add that method to it, which gives those of all training images (N, K)"
    if is_needed:
        raise UserError(f"`model.head.prior_bias`: {unknown}; {advice}, or set prior_bias to false")
    rank_zero_warn(f"regression targets are taken as they are, not standardised, as {unknown}; {advice}")
    return None


def precise(values: Tensor) -> Tensor:
    """The values as float64, or as float32 on a device that has no float64."""
    return values.to(_precise_type(values.device))


def _precise_type(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@lru_cache(maxsize=32)  # as each copy to a GPU would wait for it
def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=_precise_type(device), device=device)
