"""Resizing of images to a square: its centre for a crop, or the whole of them, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

# How many times as long as wide an image is whose ends are not resized. To resize the whole of 20,000 x 1 pixels, the
# shorter side to 256, takes gigabytes; up to here, it takes 256 x 256 x 32 pixels.
_LONG = 32


class ResizeForCentre(v2.Resize):  # type: ignore[misc]
    """`Resize` of the shorter side before a `CenterCrop`; of a long image that is enlarged it gives that crop at once.

    A long image that is made smaller is resized as a whole: it takes less memory than it did before.

    Args:
        side: Length of the shorter side that is asked for, in pixels.
        crop: Side of the square that will be cut out, in pixels.
        interpolation: How images are resized.
    """

    def __init__(self, side: int, crop: int, interpolation: InterpolationMode) -> None:
        super().__init__([side], interpolation, antialias=True)
        self.crop = crop

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes an image, uint8 or float ``(C, H, W)`` or of Pillow."""
        height, width = F.get_size(inpt)
        short, long = sorted((height, width))
        side = self.size[0]
        if long <= _LONG * short or short >= side or self.crop > side:
            return super().transform(inpt, params)
        far = int(side * long / short)
        whole = (side, far) if height < width else (far, side)
        # As `CenterCrop` rounds.
        first = [round((length - self.crop) / 2) for length in whole]
        if isinstance(inpt, Image.Image):
            return self._cut(inpt, whole, first)
        if self.interpolation == InterpolationMode.NEAREST:
            picked = [
                (torch.arange(start, start + self.crop, dtype=torch.float32) * (before / after)).long()
                for start, before, after in zip(first, (height, width), whole, strict=True)
            ]
            return inpt[..., picked[0][:, None], picked[1]]
        planes = [Image.fromarray(plane.numpy()) for plane in inpt.reshape(-1, height, width).cpu()]
        cut = [torch.from_numpy(np.array(self._cut(plane, whole, first))) for plane in planes]
        return torch.stack(cut).reshape(*inpt.shape[:-2], self.crop, self.crop).to(inpt.device)

    def _cut(self, image: Image.Image, whole: tuple[int, int], first: list[int]) -> Image.Image:
        """The pixels of the square that are found ``first`` rows and columns within the image, resized as a whole."""
        scale = (image.height / whole[0], image.width / whole[1])
        top, left = (start * ratio for start, ratio in zip(first, scale, strict=True))
        bottom, right = ((start + self.crop) * ratio for start, ratio in zip(first, scale, strict=True))
        return image.resize(
            (self.crop, self.crop), Image.Resampling[self.interpolation.name], (left, top, right, bottom)
        )


def size_within(square: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of an image whose longer side is made as long as that of a square; no side vanishes.

    >>> size_within(224, 375, 500), size_within(224, 1, 20_000), size_within(224, 3, 2)
    ((168, 224), (1, 224), (224, 149))
    """
    long = max(height, width)
    # To the nearest, in whole numbers, as an exported file computes it.
    return max(1, (2 * square * height + long) // (2 * long)), max(1, (2 * square * width + long) // (2 * long))


class ResizeWhole(v2.Resize):  # type: ignore[misc]
    """`Resize` of an image to the size with which it fits into a square.

    Args:
        size: Side of the square, in pixels.
        interpolation: How images are resized.
    """

    def __init__(self, size: int, interpolation: InterpolationMode) -> None:
        super().__init__([size, size], interpolation, antialias=True)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resizes an image, uint8 or float ``(C, H, W)`` or of Pillow."""
        size = list(size_within(self.size[0], *F.get_size(inpt)))
        return F.resize(inpt, size, self.interpolation, antialias=True)


class PadToSquare(v2.Transform):  # type: ignore[misc]
    """Puts an image into the middle of a square of the mean colour, which is about zero after the normalisation.

    Args:
        size: Side of the square, in pixels.
        fill: The colour: a value from 0 to 255 for each channel, or a raw one.
        is_raw: Whether images are raw values of bands.
    """

    def __init__(self, size: int, fill: Sequence[float], is_raw: bool = False) -> None:
        super().__init__()
        self.size = size
        self.fill = list(fill)
        self.is_raw = is_raw

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pads an image, uint8, or float from 0 to 1 or raw ``(C, H, W)``, or of Pillow; grey ones get all channels."""
        channels, height, width = F.get_dimensions(inpt)
        if isinstance(inpt, Tensor) and channels == 1 and not self.is_raw:
            channels = len(self.fill)
            inpt = inpt.expand(*inpt.shape[:-3], channels, -1, -1)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        padding = [left, top, self.size - width - left, self.size - height - top]
        return F.pad(inpt, padding, fill=self._fill_of(inpt, channels))

    def _fill_of(self, image: Any, channels: int) -> list[float]:
        """The colour on the scale of an image: grey where its channels are others than the network's."""
        fill = self.fill if channels == len(self.fill) else [round(sum(self.fill) / len(self.fill))] * channels
        is_fraction = isinstance(image, Tensor) and image.is_floating_point() and not self.is_raw
        return [value / 255 for value in fill] if is_fraction else [*fill]
