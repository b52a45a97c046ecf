"""Random crops of images, several from one decode of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_ft.data.images.decode import is_turned, open_image, size_upright, to_tensor, turn_upright

_RESAMPLING = {
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
}


class _Part(NamedTuple):
    """The part of an image that a crop cuts out, and torch's random numbers after it was drawn."""

    top: int
    left: int
    height: int
    width: int
    random_state: Tensor


_Cut = Callable[[_Part], Tensor]


def make_crops(
    image: str | Path | BytesIO | Tensor, crop: v2.RandomResizedCrop, seeds: Sequence[int], name: str | None = None
) -> Iterator[Tensor]:
    """Yields what a random crop makes of an image for each seed, ``(3, h, w)``, without decoding finer than they need.

    A JPEG is decoded once, at a half, a quarter or an eighth of its size where each part that is cut out has then still
    as many pixels as the result. So a crop comes from at least as many pixels as alone. Of all other images, and of a
    JPEG at its full size, each crop has the very pixels of ``crop(decode(file))``.

    The caller keeps torch's random numbers on the CPU, which are set: with each crop, they go on from its seed.

    Args:
        image: A file, its content, or its pixels ``(C, H, W)``.
        crop: Which parts are cut out, and their size.
        seeds: What the random numbers of each crop follow from.
        name: What the file is called in a message; its path when not given.

    Raises:
        UserError: The file cannot be read.
    """
    parts, cut = _of_pixels(image, crop, seeds) if isinstance(image, Tensor) else _of_file(image, crop, seeds, name)
    for part in parts:
        torch.set_rng_state(part.random_state)
        yield cut(part)


def _of_file(
    file: str | Path | BytesIO, crop: v2.RandomResizedCrop, seeds: Sequence[int], name: str | None
) -> tuple[list[_Part], _Cut]:
    """The parts of a file to cut out, and what cuts each of them."""
    with open_image(file, name) as image:
        if not isinstance(image, JpegImageFile):
            return _of_pixels(to_tensor(turn_upright(image)), crop, seeds)
        parts = _draw(crop, seeds, *size_upright(image))
        shrink = min(_shrink(image, part, crop) for part in parts)
        if shrink == 1:
            return parts, partial(_cut_image, turn_upright(image), crop)
        image.draft(None, (image.width // shrink, image.height // shrink))
        return parts, partial(_cut_shrunk, turn_upright(image), shrink, crop)


def _of_pixels(image: Tensor, crop: v2.RandomResizedCrop, seeds: Sequence[int]) -> tuple[list[_Part], _Cut]:
    return _draw(crop, seeds, *image.shape[1:]), partial(_cut_pixels, image, crop)


def _draw(crop: v2.RandomResizedCrop, seeds: Sequence[int], height: int, width: int) -> list[_Part]:
    parts = []
    for seed in seeds:
        torch.default_generator.manual_seed(seed)
        drawn = crop.make_params([torch.empty(1, height, width, device="meta")])
        place = drawn["top"], drawn["left"], drawn["height"], drawn["width"]
        parts.append(_Part(*place, torch.get_rng_state()))
    return parts


def _shrink(image: JpegImageFile, part: _Part, crop: v2.RandomResizedCrop) -> int:
    """The factor by which a JPEG may be decoded smaller, for a part of it; 1 is not at all."""
    if InterpolationMode(crop.interpolation) not in _RESAMPLING:
        return 1  # the nearest pixel is one of the original's
    room = min(part.height // crop.size[0], part.width // crop.size[1])
    # Of a turned image the odd pixels would be at the other end.
    fits = [s for s in (8, 4, 2) if not is_turned(image) or (image.width % s == 0 and image.height % s == 0)]
    return next((s for s in fits if room >= s), 1)


def _cut_pixels(image: Tensor, crop: v2.RandomResizedCrop, part: _Part) -> Tensor:
    """The same as torchvision's, faster where pixels lie together, as in decoded images."""
    pixels = image[:, part.top : part.top + part.height, part.left : part.left + part.width]
    # In the memory format of decoded images: torch's resize is fastest for that, if there are no gaps.
    return _resized(pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1), crop)


def _cut_image(image: Image.Image, crop: v2.RandomResizedCrop, part: _Part) -> Tensor:
    """The same, of an image that Pillow holds."""
    box = part.left, part.top, part.left + part.width, part.top + part.height
    # As Pillow holds it, with a fourth byte a pixel: to pack three would take longer than to resize four.
    content = image.crop(box).tobytes("raw", "RGBX")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bytes that are not to be written, and are not
        held = torch.frombuffer(content, dtype=torch.uint8)
    resized = _resized(held.view(part.height, part.width, 4).permute(2, 0, 1), crop)
    pixels = resized.permute(1, 2, 0).contiguous().numpy()
    # Back through Pillow, which leaves the fourth bytes out several times as fast as torch or numpy.
    packed = Image.frombuffer("RGBX", pixels.shape[1::-1], pixels, "raw", "RGBX", 0, 1).tobytes("raw", "RGB")
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(*crop.size, 3).permute(2, 0, 1)


def _cut_shrunk(image: Image.Image, shrink: int, crop: v2.RandomResizedCrop, part: _Part) -> Tensor:
    """Nearly the same, of an image that was decoded at a part of its size."""
    edges = part.left, part.top, part.left + part.width, part.top + part.height
    left, top, right, bottom = (edge / shrink for edge in edges)
    size = (crop.size[1], crop.size[0])
    return to_tensor(image.resize(size, _RESAMPLING[InterpolationMode(crop.interpolation)], (left, top, right, bottom)))


def _resized(part: Tensor, crop: v2.RandomResizedCrop) -> Tensor:
    resized: Tensor = F.resize(part, list(crop.size), crop.interpolation, antialias=crop.antialias)
    return resized
