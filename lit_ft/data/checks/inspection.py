"""Inspection of an image file: whether it can be read, its format, size and content."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lit_ft.data.checks.duplicates import THUMB
from lit_ft.data.images.decode import formats
from lit_ft.data.images.verification import problem_or_pixels

NO_CHECKSUM = b""
_ALSO = {"MPO": "JPEG"}
"""Formats that are another one with something added: what phones write to .jpg files."""


@dataclass(frozen=True)
class Inspected:
    """Facts about an image file.

    Args:
        problem: Why it cannot be read, or nothing.
        size: Number of bytes; -1 where there is no file.
        format: Format of its content, such as ``JPEG``; nothing where it is no image.
        width: In pixels, as stored.
        height: Likewise.
        is_turned: Whether its EXIF data ask to turn or mirror it.
        checksum: Of its content; nothing where it cannot be read.
        thumb: uint8 ``(3, 32, 32)``, of the upright image; nothing likewise.
    """

    problem: str = ""
    size: int = -1
    format: str = ""
    width: int = 0
    height: int = 0
    is_turned: bool = False
    checksum: bytes = NO_CHECKSUM
    thumb: NDArray[np.uint8] | None = None

    @property
    def is_huge(self) -> bool:
        """Whether it has more pixels than Pillow takes for safe; such an image is not decoded."""
        return self.width * self.height > (Image.MAX_IMAGE_PIXELS or float("inf"))


def inspect_file(path: Path) -> Inspected:
    """Reads a file once."""
    try:
        size = path.stat().st_size
        format, width, height, is_turned = _header(path)
    except OSError as error:
        return Inspected(error.strerror or type(error).__name__)
    seen = Inspected("", size, format, width, height, is_turned)
    if seen.is_huge:
        return seen
    found = problem_or_pixels(path)
    if isinstance(found, str):
        return Inspected(found, size, format, width, height, is_turned)
    upright = Image.fromarray(found.permute(1, 2, 0).numpy())
    thumb = np.asarray(upright.resize((THUMB, THUMB), Image.Resampling.BOX)).transpose(2, 0, 1)
    checksum = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    return Inspected("", size, format, width, height, is_turned, checksum, np.ascontiguousarray(thumb))


def matches_format(suffix: str, format: str) -> bool:
    """Whether a file name's suffix belongs to the format of its content.

    >>> matches_format(".JPG", "MPO"), matches_format(".png", "JPEG")
    (True, False)
    """
    return Image.registered_extensions().get(suffix.lower()) == _ALSO.get(format, format)


def _header(path: Path) -> tuple[str, int, int, bool]:
    """Format, width, height and whether it is turned; where there is no image, nothing of it."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # a header is harmless
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats()) as image:
                has_exif = image.format != "PNG" or "exif" in image.info  # else Pillow decodes it all, and looks behind
                turned = has_exif and image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
                return image.format or "", image.width, image.height, turned
    except Exception:  # a damaged file raises nearly anything; decoding it gives the reason
        return "", 0, 0, False
    finally:
        Image.MAX_IMAGE_PIXELS = limit
