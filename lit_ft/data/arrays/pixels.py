"""Arrays of images as uint8 `(N, C, H, W)`: their layout, and fractions brought to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.errors import UserError

_CHANNELS = (1, 3)
_PART = 64 << 20
"""Bytes of floats that are scaled at a time."""


def channels_first(shape: tuple[int, ...], key: str, what: str) -> tuple[int, ...]:
    """The shape ``(N, C, H, W)`` of an array of images, grey ones without channels or not, channels first or last.

    Raises:
        UserError: It is of another shape.

    >>> [channels_first(shape, "", "") for shape in ((9, 28, 30), (9, 28, 30, 3), (9, 1, 5, 5))]
    [(9, 1, 28, 30), (9, 3, 28, 30), (9, 1, 5, 5)]
    """
    if len(shape) == 3 and min(shape[1:]) > 1:
        return (shape[0], 1, *shape[1:])
    if len(shape) == 4 and shape[3] in _CHANNELS:
        return (shape[0], shape[3], *shape[1:3])
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return shape
    raise UserError(
        f"{key}: {what} is of shape {shape}; images are (N, H, W), or (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
    )


def order_channels(images: NDArray[Any]) -> NDArray[Any]:
    """Images as `channels_first` has their shape; a view of the same values."""
    if images.ndim == 3:
        return images[:, None]
    return images.transpose(0, 3, 1, 2) if images.shape[3] in _CHANNELS else images


def refuse_type(dtype: np.dtype[Any], key: str, what: str) -> None:
    """Raises `UserError` for values that are no bytes, nor may be fractions of 1."""
    if dtype != np.uint8 and dtype.kind not in "fO":  # objects are refused where they are read
        raise UserError(
            f"{key}: {what} is of type {dtype}; images are uint8, or float from 0 to 1; if its values are from 0 to "
            "255, save it with .astype('uint8')"
        )


def to_bytes(images: NDArray[Any], key: str, what: str) -> Tensor:
    """Images ``(N, C, H, W)`` as uint8; floats from 0 to 1 are scaled by 255 and rounded.

    Raises:
        UserError: They are of another type, or have other values.
    """
    refuse_type(images.dtype, key, what)
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    scaled = np.empty(images.shape, np.uint8)
    step = max(1, _PART // (images[:1].size * 8))
    for start in range(0, len(images), step):
        part = images[start : start + step].astype(np.float32)
        if not (part.min() >= 0 and part.max() <= 1):  # nor nan
            raise UserError(f"{key}: {_describe_range(part, start, what)}")
        scaled[start : start + step] = np.rint(part * 255)
    return torch.from_numpy(scaled)


def _describe_range(part: NDArray[np.float32], start: int, what: str) -> str:
    """What is wrong with floats that are not all from 0 to 1."""
    finite = np.isfinite(part).all(axis=(1, 2, 3))
    if not finite.all():
        row = start + int((~finite).argmax())
        return f"{what} has values that are no numbers, first in image {row}; fix them, or leave those images out"
    advice = "images are uint8, or float from 0 to 1"
    if part.min() < 0:
        advice += "; save them before they are normalised, as that is done here"
    elif part.max() <= 255:
        advice += "; save them with .astype('uint8')"
    return f"{what} is float with values from {part.min():g} to {part.max():g}; {advice}"
