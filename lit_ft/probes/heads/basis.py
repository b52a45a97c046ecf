"""Scaled and rotated features, on which heads are quickly solved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor
from torch.nn import functional as F

_BLOCK = 64 << 20
"""Bytes of features, as float64, that are read at once."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it, a GPU multiplies float32 matrices as such, also after a trainer has let it take TF32.

    Gradients with three digits end the solver before its tolerance.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Basis:
    """Scaled features ``(N, D)`` in the coordinates of their principal components, and a column of ones.

    Features are centred and divided by the square root of their standard deviation (Pareto scaling, van den Berg et al.
    2006, Centering, scaling, and transformations). Divided by the deviation itself, all channels of a backbone would
    count alike, also those that are all but silent on the training images, and by one of them alone a new image could
    then be predicted.

    The heads of all problems share it. A rotation changes neither predictions nor the L2 penalty, but in these
    coordinates the Hessian of a head is nearly diagonal, and with fewer images than features there are only N of them.

    Args:
        features: The features ``(N, D)``, on any device; a file that is mapped into memory is read in blocks.
        device: Where to compute; by default where the features are.
        dtype: In which type to compute.
        keep: Keep the rotated features in memory up to this number of bytes; above, they are computed at each pass.
    """

    def __init__(
        self, features: Tensor, device: torch.device | None = None, dtype: torch.dtype = torch.float32,
        keep: int = 2 << 30,
    ) -> None:  # fmt: skip
        self.features, self.dtype = features, dtype
        self.device = device or features.device
        self.mean, self.scale = self._moments()
        rotation, variance = self._principal_components()
        self.rotation = rotation.to(self.dtype)
        self.curvature = F.pad(variance, (0, 1), value=1.0).to(self.dtype)
        self._kept: Tensor | None = None
        if len(features) * len(self.curvature) * dtype.itemsize <= keep:
            kept, start = torch.empty(len(features), self.width, dtype=dtype, device=self.device), 0
            for block in self._blocks():  # not joined at the end, which would take the memory twice
                kept[start : start + len(block)] = self._rotate(block)
                start += len(block)
            self._kept = kept

    def __len__(self) -> int:
        return len(self.features)

    @property
    def width(self) -> int:
        """Number of coordinates, the one of the bias included."""
        return len(self.curvature)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """The coordinates of some images ``(B, width)``, the last one being 1."""
        if self._kept is None:
            return self._rotate(self.features[rows if isinstance(rows, slice) else rows.to(self.features.device)])
        return self._kept[rows if isinstance(rows, slice) else rows.to(self.device)]

    def part(self, rows: Tensor, dtype: torch.dtype | None = None) -> Basis:
        """The same coordinates of some of the images alone, in another type if that is given."""
        some = copy(self)
        some.features, some.dtype = self.features[rows.to(self.features.device)], dtype or self.dtype
        some.rotation, some.curvature = self.rotation.to(some.dtype), self.curvature.to(some.dtype)
        some._kept = None if self._kept is None else self[rows].to(some.dtype)
        return some

    def heads(self, solved: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(..., K, D)`` and biases ``(..., K)`` for features as they are, of heads ``(..., K, width)``."""
        weight = (solved[..., :-1].double() @ self.rotation.double().T) / self.scale
        return weight, solved[..., -1].double() - weight @ self.mean

    def _blocks(self, step: int = 1) -> Iterator[Tensor]:
        size = max(1, _BLOCK // (8 * self.features.shape[1]))
        for start in range(0, len(self.features), size * step):
            yield self.features[start : start + size * step : step]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and scale ``(D,)`` of the features, float64; the scale of a constant is 1.

        The scales have the unit of the features, and make their mean variance 1, as standard deviations do.
        """
        mean = torch.stack([self._double(block).sum(dim=0) for block in self._blocks()]).sum(dim=0) / len(self)
        squares = torch.stack([(self._double(block) - mean).square().sum(dim=0) for block in self._blocks()]).sum(dim=0)
        deviation = (squares / len(self)).sqrt()
        is_constant = deviation <= 1e-7 * mean.abs()  # but for rounding
        varies = deviation[~is_constant]
        scale = (deviation * varies.mean()).sqrt() if len(varies) else deviation
        return mean, scale.masked_fill(is_constant, 1.0)

    def _principal_components(self) -> tuple[Tensor, Tensor]:
        """The components ``(D, r)`` and the variance ``(r,)`` of the features along each, float64."""
        num, width = self.features.shape
        if num <= width:
            rows = torch.cat([self._scale(block) for block in self._blocks()])
            squared, vectors = torch.linalg.eigh(rows @ rows.T)
            is_kept = squared > 1e-9 * squared[-1]
            squared, vectors = squared[is_kept], vectors[:, is_kept]
            return rows.T @ (vectors / squared.sqrt()), squared / num
        # Any rotation leaves the optimum where it is, so that some images suffice.
        step = max(1, num // (20 * width))
        gram, count = torch.zeros(width, width, dtype=torch.float64, device=self.device), 0
        for block in self._blocks(step):
            rows = self._scale(block)
            gram, count = gram.addmm_(rows.T, rows), count + len(rows)
        squared, vectors = torch.linalg.eigh(gram)
        return vectors, squared.clamp(min=0) / count

    def _double(self, block: Tensor) -> Tensor:
        return block.to(self.device, torch.float64)

    def _scale(self, block: Tensor) -> Tensor:
        return (self._double(block) - self.mean) / self.scale

    @full_precision()
    def _rotate(self, block: Tensor) -> Tensor:
        return F.pad(self._scale(block).to(self.dtype) @ self.rotation, (0, 1), value=1.0)
