"""Layout of raw values: bands before height and width, upright, and no more than memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PixelValues = NDArray[Any]
"""Numbers ``(C, H, W)``, of the type in which a file has them."""


def check_shape(shape: Sequence[int]) -> None:
    """Raises `ValueError` for more values than Pillow takes for safe pixels; see `lit_ft.data.images.decode.decode`."""
    most = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else math.inf
    if math.prod(map(int, shape)) > most:
        sides = " x ".join(map(str, shape))
        raise ValueError(f"its {sides} values are more than {most:,}, which PIL.Image.MAX_IMAGE_PIXELS allows")


def check_size(values: PixelValues) -> PixelValues:
    """The same values ``(C, H, W)``, if they are real numbers, and not too many."""
    if values.dtype.kind not in "buif":
        raise ValueError(f"its values are {values.dtype}, and no real numbers")
    check_shape(values.shape)
    return values


def put_bands_first(values: NDArray[Any]) -> PixelValues:
    """Numbers ``(H, W)`` or ``(H, W, C)`` as ``(C, H, W)``."""
    return values[np.newaxis] if values.ndim == 2 else values.transpose(2, 0, 1)


def turn_upright(values: PixelValues, orientation: int) -> PixelValues:
    """Values ``(C, H, W)`` as the orientation of EXIF and TIFF asks; an unknown one asks for nothing."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        values = values[:, ::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, :, ::-1]
    return values
