"""The eval geometry as two matrix products, which any runtime computes, for images of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_ft.backbones.input_spec import InputSpec

# The weights of pixels are rounded to 16 bits, scaled by a power of two of at most so many bits, as in torch's own
# resizing of uint8 images, which took it from Pillow.
_WEIGHT_LIMIT = 1 << 15
_MOST_BITS = 22

# Into how many groups the columns of the result are divided at most; those of one need a part of the image alone.
_MOST_GROUPS = 16

_RADIUS = {"nearest": 1, "bilinear": 1, "bicubic": 2}
"""How far the pixels are that count, in pixels of the coarser of the two images."""


class SquareResize(nn.Module):
    """Resizes images, and cuts or pads them to a square: `InputSpec.geometry`, as operations that all runtimes have.

    Each pixel of the result is a weighted mean of pixels of the image, along its row and then along its column. Both
    are products with matrices of weights, which are computed of the size of the images. No operator for resizing is
    needed: those of the runtimes differ, and few have antialiasing. Like torch with uint8 images on x86 CPUs, it rounds
    weights to 16 bits, and pixels after each of the two passes. Raw values of bands are not rounded.

    Args:
        spec: The geometry.
    """

    powers: Tensor
    fill: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        self.radius = _RADIUS[spec.interpolation]
        self.is_exact = spec.interpolation == "nearest" or spec.bands is not None
        self.is_nearest = spec.interpolation == "nearest"
        self.register_buffer("powers", 2.0 ** torch.arange(1, _MOST_BITS + 1), persistent=False)
        fill = torch.tensor(spec.padding, dtype=torch.float32)
        self.register_buffer("fill", fill.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images, uint8 ``(B, H, W, C)`` -> whole numbers from 0 to 255, or raw, float32 ``(B, C, size, size)``."""
        height, width = images.shape[1:3]
        groups = max(count for count in range(1, _MOST_GROUPS + 1) if self.spec.size % count == 0)
        rows, row_weights = self._weigh(height, width, 1)
        columns, column_weights = self._weigh(width, height, groups)
        pixels = images.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        pixels = (
            pixels.reshape(*pixels.shape[:2], *columns.shape, pixels.shape[3]).permute(0, 4, 2, 1, 3).float()
        )  # (B, C, groups, H, L)
        pixels = self._round(
            torch.matmul(pixels, column_weights.transpose(1, 2))
        )  # (B, C, groups, rows, size / groups)
        pixels = pixels.permute(0, 1, 3, 2, 4).flatten(3)
        made = self._round(torch.matmul(row_weights[0], pixels))
        if self.spec.fit != "pad":
            return made
        is_row, is_column = (weights.flatten(0, 1).sum(dim=1) > 0 for weights in (row_weights, column_weights))
        return torch.where(is_row[:, None] & is_column, made, self.fill)

    def _round(self, values: Tensor) -> Tensor:
        return values if self.is_exact else torch.floor(values + 0.5).clamp(0, 255)

    def _weigh(self, side: Any, other: Any, groups: int) -> tuple[Tensor, Tensor]:
        """The pixels of a side that each group of places within the square needs, ``(groups, L)``, and their weights.

        The weights are ``(groups, size / groups, L)``; of pixels or places that do not exist, they are zero.
        """
        size, resize, fit = self.spec.size, self.spec.resize, self.spec.fit
        # The length of the side as it is resized, and how many pixels of the image make how many of the result.
        if fit == "pad":
            long = torch.sym_max(side, other)
            resized = torch.sym_max((2 * size * side + long) // (2 * long), 1)
            pixels_of, result_of = side, resized
        else:
            short = torch.sym_min(side, other)
            resized = resize if fit == "squash" else side * resize // short
            pixels_of, result_of = (side if fit == "squash" else short), resize
        before = torch.scalar_tensor(side, dtype=torch.int64)
        after = torch.scalar_tensor(resized, dtype=torch.int64)
        first = -((size - after) // 2) if fit == "pad" else self._first_of_centre(after)
        places = (first + torch.arange(size)).view(groups, -1, 1)
        reach = 2 * self.radius * torch.maximum(before, after)
        starts = ((2 * places[:, :1] + 1) * before - reach).clamp(min=0) // (2 * after)
        # At least as many as a group can need: its places and what is beyond them, and one for each rounding.
        count = (size // groups + 2 * self.radius) * pixels_of // result_of + 2 * self.radius + 3
        pixels = starts + torch.arange(count)
        weights = self._quantise(self._weights(places, pixels, before, after), before, after, count)
        return pixels.squeeze(1).clamp(max=side - 1), weights

    def _first_of_centre(self, after: Tensor) -> Tensor:
        """Where the centre of a side begins: rounded to the even one, as `CenterCrop` does."""
        return torch.round((after - self.spec.size).float() / 2).long()

    def _weights(self, places: Tensor, pixels: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Weights ``(..., P, L)`` of pixels ``(..., 1, L)`` in places ``(..., P, 1)``; places within sum to 1."""
        is_within = (places >= 0) & (places < after)
        if self.is_nearest:
            picked = torch.floor(places.float() * (before.float() / after.float())).long()
            return ((torch.minimum(picked, before - 1) == pixels) & is_within).float()
        # Whole numbers up to the division.
        distance = ((2 * pixels + 1) * after - (2 * places + 1) * before).abs().float()
        weights = self._filter(distance / (2 * torch.maximum(before, after)).float())
        weights = torch.where((pixels < before) & is_within, weights, 0.0)
        return weights / torch.where(is_within, weights.sum(dim=-1, keepdim=True), 1.0)

    def _filter(self, distance: Tensor) -> Tensor:
        if self.radius == 1:
            return (1 - distance).clamp(min=0)
        # Keys 1981, with a = -0.5, as in Pillow.
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))

    def _quantise(self, weights: Tensor, before: Tensor, after: Tensor, count: Any) -> Tensor:
        """The weights in multiples of a power of two: the largest of which all weights fit into 16 bits."""
        if self.is_exact:
            return weights
        # The first place, which may be outside of the crop, has the fewest pixels, which so weigh most.
        corner = self._weights(torch.zeros(1, 1, dtype=torch.int64), torch.arange(count).unsqueeze(0), before, after)
        largest = torch.maximum(weights.max(), corner.max())
        fits = torch.floor(0.5 + largest * self.powers) < _WEIGHT_LIMIT
        scale = torch.where(fits, self.powers, 1.0).max()
        whole = weights * scale
        return torch.sign(whole) * torch.floor(whole.abs() + 0.5) / scale
