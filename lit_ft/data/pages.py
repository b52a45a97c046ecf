"""Pages of reports: rendering of their templates, thumbnails of images, and writing."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

from PIL import Image

from lit_ft.assets import replace_atomically
from lit_ft.console import rank_zero_print
from lit_ft.data.bands.preview import draw_bands
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.images.decode import formats, turn_upright
from lit_ft.errors import UserError, refuse_unwritable

SIDE = 160
"""Longer side of a thumbnail, in pixels."""

MAX_SHOWN = 50
"""Groups or images of a finding that a page shows."""


def render_page(package: str, template: str, **values: Any) -> str:
    """One HTML file, with the pictures in it.

    Args:
        package: The package with the folder ``templates``, whose templates extend ``base.html`` of this package.
        template: Name of the template.
        values: What it shows.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader  # slow to load, and seldom needed

    loader = ChoiceLoader([PackageLoader(package), PackageLoader("lit_ft.data")])
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "name": lambda path: PurePath(path).name,
        "suffix": lambda path: PurePath(path).suffix,
        "thumbnail": thumbnail,
    }
    return environment.get_template(template).render(max_shown=MAX_SHOWN, **values)


def thumbnail(path: str) -> str:
    """A small JPEG of an image in base 64; nothing of one that cannot be read, or has too many pixels.

    Of raw values, which is what more than 8 bits are taken for, it shows the first bands.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with Image.open(path, formats=formats()) as image:
            if image.width * image.height > (limit or 0):
                return ""
            if not image.mode.startswith(("I", "F")):
                return encode_thumbnail(turn_upright(image))
    except Exception:  # what cannot be read is what such pages are about
        pass
    try:
        return encode_thumbnail(draw_bands(BandReader("all")(path)))
    except UserError:
        return ""


def encode_thumbnail(image: Image.Image, side: int = SIDE) -> str:
    """A small JPEG of an image in base 64, whose longer side has at most so many pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    data = BytesIO()
    small.save(data, "JPEG", quality=80)
    return base64.b64encode(data.getvalue()).decode()


def make_folder(folder: str) -> Path:
    """The folder of a report, made where there is none; raises `UserError` where that fails."""
    place = Path(folder).expanduser()
    if not folder.strip() or place.is_file():
        raise UserError(f"`folder`: {f'{place} is a file' if folder.strip() else 'names nothing'}; name a folder")
    with refuse_unwritable(f"`folder`: {place}"):
        place.mkdir(parents=True, exist_ok=True)
    return place


def write_report(folder: Path, texts: Mapping[str, str]) -> None:
    """Writes the files of a report by name, and prints their paths; names of files in them need not be valid text."""
    for name, text in texts.items():
        with replace_atomically(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")
        rank_zero_print(f"Written: {folder / name}")
