"""Arrays of NumPy as bands: which axis is that of the bands, and files of them, read without running code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lit_ft.backbones.input_spec import Bands
from lit_ft.data.bands.layout import PixelValues, check_size

_LAYOUTS = ("(H, W, C)", "(C, H, W)")
_OBJECTS = "it holds objects of Python, which could run code, or is damaged"
_SOME = 100  # arrays whose shapes are compared


def read_npy(file: str | Path | BytesIO, count: int | None) -> tuple[PixelValues, str]:
    """A file of NumPy as `of_array` reads its array; one with objects is refused, and nothing in it is run."""
    return of_array(_load(file), count)


def of_array(values: NDArray[Any], count: int | None) -> tuple[PixelValues, str]:
    """An array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` as ``(C, H, W)``, and how it was read, for a message.

    Args:
        values: The array.
        count: How many bands it should have; see `is_first`.

    Raises:
        ValueError: It has another number of axes, no values, or none that are real numbers.
    """
    if values.ndim not in (2, 3) or 0 in values.shape:
        several = "; in Python: lit_ft.load(RUN).predict(numpy.load(FILE))" if values.ndim == 4 and values.size else ""
        raise ValueError(f"its shape {tuple(values.shape)} is none of (H, W), (H, W, C) and (C, H, W){several}")
    if values.ndim == 2:
        return check_size(values[np.newaxis]), f"{tuple(values.shape)} read as (H, W)"
    first = is_first(values.shape, count)
    return check_size(values if first else values.transpose(2, 0, 1)), _format_reading(values.shape, first)


def is_first(shape: Sequence[int], count: int | None = None) -> bool:
    """Whether the bands of an array of three axes are the first, and not the last.

    They are the one of the two that has as many as there should be; the last, if both have. Where neither has, or
    none are expected, two axes that are equal and adjacent are height and width; else the shorter of the two is it.

    >>> is_first((45, 5, 5)), is_first((45, 5, 5), 5), is_first((9, 12, 32)), is_first((9, 12, 32), 32)
    (True, False, True, False)
    """
    first, second, last = shape
    if count in (first, last):
        return last != count
    return second == last if (first == second) != (second == last) else first < last


def agree_on_bands(file: Path, files: Sequence[Path]) -> int | None:
    """The number of bands of an array in a set, where its shape alone may mislead, and others show which axis it is.

    Of up to 100 arrays of the set, all must agree in the length of the first axis, or of the last, and not of both.
    """
    shape = npy_shape(file)
    if shape is None or not _is_unsure(shape):
        return None
    shapes = [shape, *filter(None, (npy_shape(files[row]) for row in range(0, len(files), -(-len(files) // _SOME))))]
    firsts, lasts = ({one[axis] for one in shapes} for axis in (0, 2))
    if (len(firsts) == 1) == (len(lasts) == 1):
        return None
    return shape[0] if len(firsts) == 1 else shape[2]


def format_doubt(files: Sequence[Path], bands: Bands) -> str:
    """How the first array of a set is read, where its other axis might be the bands; else nothing."""
    shape = npy_shape(files[0])
    if shape is None or not _is_unsure(shape) or (bands == "all" and agree_on_bands(files[0], files)):
        return ""
    first = is_first(shape)
    number, other, planes = (shape[0], shape[2], "contig") if first else (shape[2], shape[0], "separate")
    return (
        f"`data.bands`: {_format_reading(shape, first)}: {number} bands; if it is {_LAYOUTS[not first]} with {other}, "
        f"save TIFF: tifffile.imwrite(FILE, values, photometric='minisblack', planarconfig='{planes}')"
    )


def npy_shape(file: Path) -> tuple[int, int, int] | None:
    """The shape of an array of three axes in a ``.npy`` file; None of others, and of what cannot be read."""
    if file.suffix.lower() != ".npy":
        return None
    try:
        shape = _load(file).shape
    except (OSError, ValueError, EOFError):  # which is refused when it is read
        return None
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 and 0 not in shape else None


def _is_unsure(shape: tuple[int, int, int]) -> bool:
    """Whether the image would be nearer to a square if the other axis were the bands."""
    less, middle, more = min(shape[0], shape[2]), shape[1], max(shape[0], shape[2])
    if middle in (less, more):  # which are height and width
        return False
    return max(less, middle) / min(less, middle) < max(middle, more) / min(middle, more)


def _format_reading(shape: Sequence[int], first: bool) -> str:
    return f"{tuple(shape)} read as {_LAYOUTS[first]}"


def _load(file: str | Path | BytesIO) -> NDArray[Any]:
    is_content = isinstance(file, BytesIO)
    try:  # mapped where it can be, so that a header that lies costs no memory
        _check_header(file)
        found = np.load(file, None if is_content else "r", allow_pickle=False)
    except ValueError as error:
        if "object" in str(error).lower() or "pickle" in str(error):
            raise ValueError(_OBJECTS) from error
        raise
    if not isinstance(found, np.ndarray):
        raise ValueError("it is an archive of arrays; write each to a .npy file of its own")
    return found


def _check_header(file: str | Path | BytesIO) -> None:
    """Raises `ValueError` where the header of a file of NumPy announces what is not there."""
    with nullcontext(file) if isinstance(file, BytesIO) else open(file, "rb") as opened:
        start = opened.read(len(npy.MAGIC_PREFIX))
        size = opened.seek(0, SEEK_END)
        opened.seek(0)
        version = npy.read_magic(opened) if start == npy.MAGIC_PREFIX else None
        if version in ((1, 0), (2, 0)):  # others are of records with names, or no array
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(opened)
            if min(shape, default=0) < 0:
                raise ValueError(f"it is damaged: its header announces the shape {shape}")
            announced, there = math.prod(shape) * dtype.itemsize, size - opened.tell()
            if not dtype.hasobject and announced > there:
                raise ValueError(f"it is damaged: {there:,} bytes of values where its header announces {announced:,}")
        opened.seek(0)
