"""What is left out of images that have more than photos have: bits, bands and pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from lit_ft.data.images.decode import formats, naming_file


def find_loss(path: Path) -> str:
    """What `decode` leaves out of an image that it can read, such as ``16 bits``; nothing of an ordinary photo.

    Raises:
        UserError: It cannot be read.
    """
    with naming_file(path, None), Image.open(path, formats=formats()) as image:
        bits, extra = 16 if image.mode.startswith(("I", "F")) else 8, ""
        if image.format == "TIFF":
            tags: Any = image.tag_v2
            bits, bands = max(bits, *tags.get(258, (1,))), tags.get(277, 1)
            pages = getattr(image, "n_frames", 1)
            is_photo = bands <= 3 or image.mode in ("RGBA", "CMYK")
            extra = f"{pages} pages" if pages > 1 else "" if is_photo else f"{bands} bands"
        elif image.format == "PNG" and is_deep_png(image):
            bits = 16
        return f"{bits} bits" if bits > 8 else extra


def is_deep_png(image: Any) -> bool:
    """Whether a PNG, not yet decoded, has 16 bits."""
    return ";16" in str(image.tile[0][3])
