"""What is left out of images that have more than photos have: bits, bands and pages."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from lit_ft.data.images.decode import formats, naming_file, suffix_of
from lit_ft.errors import UserError

_ORDINARY = (".jpg", ".jpeg")
"""Suffixes of images that have no more than 8 bits of three colours, and need no second look."""

REDUCED = (
    "pictures: some have more than 8 bits of three colours, and are reduced to it; a model that is fitted with "
    "`data.bands` all takes their own values"
)
"""The warning where such pictures are predicted."""


def note_loss(path: str | Path) -> str:
    """What `find_loss` gives, without a look at what is ordinary by its name; nothing of what cannot be read."""
    try:
        return "" if suffix_of(str(path)) in _ORDINARY else find_loss(Path(path))
    except UserError:
        return ""


def format_reduced(paths: Sequence[str | Path], num_images: int) -> str:
    """How many images have more than photos have, and what would use that; nothing where there are none."""
    if not paths:
        return ""
    first = f"such as {paths[0]} of {find_loss(Path(paths[0]))}"
    what = f"{len(paths):,} of {num_images:,} images have more than 8 bits of three colours, {first}"
    advice = "a model that is fitted with `data.bands` all takes their own values, of each band"
    return f"`data.bands`: {what}, and are reduced to it; {advice}"


def find_loss(file: Path | BytesIO) -> str:
    """What `decode` leaves out of an image that it can read, such as ``16 bits``; nothing of an ordinary photo.

    Raises:
        UserError: It cannot be read.
    """
    with naming_file(file, None), Image.open(file, formats=formats()) as image:
        bits, extra = 16 if is_deep(image) else 8, ""
        if image.format == "TIFF":
            tags: Any = image.tag_v2
            bits, bands = max(bits, *tags.get(258, (1,))), tags.get(277, 1)
            pages = getattr(image, "n_frames", 1)
            is_photo = bands <= 3 or image.mode in ("RGBA", "CMYK")
            extra = f"{pages} pages" if pages > 1 else "" if is_photo else f"{bands} bands"
        elif image.format == "PNG" and is_deep_png(image):
            bits = 16
        return f"{bits} bits" if bits > 8 else extra


def is_deep(image: Image.Image) -> bool:
    """Whether an image of Pillow has more than 8 bits as Pillow holds it."""
    return image.mode.startswith(("I", "F"))


def is_deep_png(image: Any) -> bool:
    """Whether a PNG, not yet decoded, has 16 bits."""
    return ";16" in str(image.tile[0][3])
