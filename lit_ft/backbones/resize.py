"""Resizing of photos whose centre alone is used: of very long ones no more is made than that."""

from __future__ import annotations

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

_RESAMPLING = {
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
}


class ResizeForCentre(v2.Resize):  # type: ignore[misc]
    """`Resize` of the shorter side before a `CenterCrop`; of a long image that is enlarged it gives that crop at once.

    A long image that is made smaller is resized as a whole: it takes less memory than it did before.

    Args:
        side: Length of the shorter side that is asked for, in pixels.
        crop: Side of the square that will be cut out, at most as long.
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
        made: Tensor = torch.stack(cut).reshape(*inpt.shape[:-2], self.crop, self.crop)
        return made.to(inpt.device)

    def _cut(self, image: Image.Image, whole: tuple[int, int], first: list[int]) -> Image.Image:
        """The pixels of the square that are found ``first`` rows and columns within the image, resized as a whole."""
        scale = (image.height / whole[0], image.width / whole[1])
        top, left = (start * ratio for start, ratio in zip(first, scale, strict=True))
        bottom, right = ((start + self.crop) * ratio for start, ratio in zip(first, scale, strict=True))
        resampling = _RESAMPLING.get(self.interpolation, Image.Resampling.NEAREST)
        return image.resize((self.crop, self.crop), resampling, (left, top, right, bottom))
