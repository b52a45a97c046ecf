"""TIFF with any number of bands, of 1 to 64 bits, by tifffile."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_ft.data.bands.layout import PixelValues, check_shape, check_size, turn_upright

# None, LZW, Deflate by its two numbers, PackBits, LZMA and Zstandard: their decoders take no more room than is asked
# for. The size of an image within, as in JPEG, could be any; those are left to Pillow, which looks.
_COMPRESSIONS = frozenset({1, 5, 8, 32946, 32773, 34925, 50000})

_SAMPLES = frozenset("SCQI")
"""What tifffile calls an axis of bands: samples of a pixel, channels, and pages of one size without another meaning."""

_MOST_PAGES = 4096

_AXES = {"T": "times", "Z": "depths", "R": "tiles", "V": "angles"}

_PALETTE, _WHITE_IS_ZERO = 3, 0


def is_tiff(head: bytes) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_tiff(file: str | Path | BytesIO) -> PixelValues | str:
    """All bands of the first image of a TIFF, ``(C, H, W)``, upright; of one left to Pillow, its compression.

    Its bands are samples of a pixel, or pages of the same size. Smaller copies of the image are passed over.

    Raises:
        ValueError: It is no such image, or its tags lie.
    """
    try:
        import imagecodecs  # noqa: F401 - tifffile takes its own decoders otherwise, which give any number of bytes
        import tifffile
    except ImportError as error:
        raise ValueError(f"TIFF needs {error.name}: pip install 'lit_ft[science]'") from None
    # OME-TIFF may name other files, which are not to be opened.
    with _quiet(), tifffile.TiffFile(file, is_ome=False) as opened:
        if _has_page(opened.pages, _MOST_PAGES):  # each would take a kilobyte, and some microseconds
            raise ValueError(f"it has more than {_MOST_PAGES:,} pages")
        series = _first_image(opened)
        page = series.keyframe
        if page.compression not in _COMPRESSIONS:
            return str(getattr(page.compression, "name", page.compression))
        bands, height, width = _order(series.axes, series.shape)
        check_shape((series.shape[bands] if bands is not None else 1, series.shape[height], series.shape[width]))
        _check_segments(series, opened.filehandle.size)
        values = series.asarray(maxworkers=1)
        if not values.size:
            raise ValueError("its tags announce no values")
        first = np.moveaxis(values, (bands, height, width), (0, 1, 2)) if bands is not None else values
        upright = first.reshape(-1, series.shape[height], series.shape[width])
        tag = page.tags.get("Orientation")
        return turn_upright(check_size(_coloured(upright, page)), int(tag.value) if tag is not None else 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what tifffile logs of odd tags: what cannot be read raises."""
    log = logging.getLogger("tifffile")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        yield
    finally:
        log.setLevel(level)


def _has_page(pages: Any, number: int) -> bool:
    """Whether there is a page of so many before it; the ones before it are not read for that."""
    try:
        pages[number]
    except IndexError:
        return False
    return True


def _first_image(opened: Any) -> Any:
    try:
        images = opened.series
        if not images:  # which newer releases of tifffile look for no sooner
            raise ValueError("it has no image")
        return images[0]
    except ZeroDivisionError as error:
        raise ValueError("a width, height or number of rows in its tags is 0") from error


def _order(axes: str, shape: tuple[int, ...]) -> tuple[int | None, int, int]:
    """Which axes are the bands, if there is one, height and width; others have a length of 1.

    >>> _order("YXS", (20, 30, 4)), _order("YX", (20, 30))
    ((2, 0, 1), (None, 0, 1))
    """
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise ValueError(f"its axes are {axes}, and it is no image")
    others = [i for i, axis in enumerate(axes) if axis not in "YX" and shape[i] > 1]
    strange = [i for i in others if axes[i] not in _SAMPLES]
    if strange or len(others) > 1:
        parts = [f"{shape[i]:,} {_AXES.get(axes[i], 'bands' if axes[i] == 'S' else 'pages')}" for i in others]
        raise ValueError(f"it has {' of '.join(parts)}; write each image to a file of its own")
    return (others[0] if others else None), axes.index("Y"), axes.index("X")


def _check_segments(series: Any, size: int) -> None:
    """Raises `ValueError` where strips or tiles are too large, or lie outside of the file."""
    for page in series.pages:
        if page is None:
            raise ValueError("some of its pages are missing")
        if page.keyframe.is_tiled:
            check_shape((page.keyframe.tilelength, page.keyframe.tilewidth, page.keyframe.samplesperpixel))
        if not len(page.dataoffsets) or len(page.dataoffsets) != len(page.databytecounts):
            raise ValueError("its tags do not say where its values are")
        if any(start + count > size for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise ValueError("its values would lie beyond its end: it is cut short, or its tags are wrong")


def _coloured(values: PixelValues, page: Any) -> PixelValues:
    """The values as they are meant, where white is 0, or where they number colours."""
    if page.photometric == _WHITE_IS_ZERO and values.dtype.kind in "bu":
        inverted: NDArray[Any] = np.invert(values)
        bits = int(np.max(page.bitspersample))
        return inverted & ((1 << bits) - 1) if values.dtype.kind == "u" and bits < 8 * values.itemsize else inverted
    if page.photometric == _PALETTE and page.colormap is not None and len(values) == 1 and values.dtype.kind == "u":
        colours: NDArray[Any] = page.colormap
        return colours[:, np.minimum(values[0], colours.shape[1] - 1)]
    return values
