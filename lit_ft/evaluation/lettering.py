"""Names in pictures, in fonts that have their characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Side = Literal["left", "middle", "right"]

_BLACK = (0, 0, 0)


class Lettering:
    """Writes lines of one size into pictures, from fonts that have their characters.

    Args:
        texts: All that is to be written.
        pixels: Size of the font.
    """

    def __init__(self, texts: Iterable[str], pixels: int) -> None:
        default, further, _ = _find_fonts(frozenset("".join(texts)))
        self._default = ImageFont.truetype(default, pixels)
        self._further = {
            char: font
            for file, chars in further.items()
            for font in [ImageFont.truetype(file, pixels)]
            for char in chars
        }
        ascent, descent = self._default.getmetrics()
        self.ascent = ascent
        self.height = ascent + descent

    def width(self, text: str) -> int:
        """Pixels from the beginning of a line to its end."""
        return round(sum(font.getlength(part) for font, part in self._parts(text)))

    def write(
        self, image: Image.Image, place: tuple[float, float], text: str, side: Side = "left",
        colour: tuple[int, int, int] = _BLACK,
    ) -> None:  # fmt: skip
        """Writes a line.

        Args:
            image: The picture.
            place: Left or right end of the line, or the middle between these, and its upper side.
            text: The line.
            side: Which of these it is.
            colour: Its colour.
        """
        pen, x = ImageDraw.Draw(image), place[0]
        if side != "left":
            x -= self.width(text) / (2 if side == "middle" else 1)
        for font, part in self._parts(text):
            pen.text((round(x), round(place[1]) + self.ascent), part, colour, font, anchor="ls")
            x += font.getlength(part)

    def write_upwards(self, image: Image.Image, place: tuple[int, int], text: str) -> None:
        """Writes a black line upwards, turned by 90 degrees, from its left and lower side."""
        line = Image.new("RGB", (self.width(text) + 2, self.height), (255, 255, 255))
        self.write(line, (1, 0), text)
        turned = line.transpose(Image.Transpose.ROTATE_90)
        image.paste(turned, (place[0], place[1] - turned.height))

    def _parts(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """The parts of a line that are of one font."""
        fonts = groupby(text, lambda char: self._further.get(char, self._default))
        return [(font, "".join(chars)) for font, chars in fonts]


def prepare_names(names: Sequence[str], number: str = "#") -> tuple[list[str], str]:
    """Names as a picture can have them, without boxes for missing characters.

    A name with a character that no installed font has is written as ``#`` and its number, from 0.

    Args:
        names: The names.
        number: The mark before the number.

    Returns:
        The text for each name, and a line that says so if some are numbers, else empty.
    """
    missing = _find_fonts(frozenset("".join(names)))[2]
    labels = [f"{number}{i}" if missing & set(name) else name for i, name in enumerate(names)]
    return labels, "(# and a number: no font here has the name)" if labels != list(names) else ""


@lru_cache(8)
def _find_fonts(wanted: frozenset[str]) -> tuple[str, Mapping[str, frozenset[str]], frozenset[str]]:
    """The default font's file, those with characters that it lacks, and the characters that no font has.

    Fonts are found by matplotlib, which brings one along; torchmetrics has loaded it anyway.
    """
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    never = frozenset(char for char in wanted if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"))
    default = findfont(FontProperties(family=["DejaVu Sans"]))
    lacking = wanted - never - _find_characters(default, wanted)
    if not lacking:
        return default, {}, never
    plain = [
        font
        for font in fontManager.ttflist
        # Matplotlib's font of last resort draws a box for every character.
        if (font.style, font.variant) == ("normal", "normal") and not font.name.startswith("Last Resort")
    ]
    further: dict[str, frozenset[str]] = {}
    # Regular weights first, then by name, so that the same font is chosen each time.
    for font in sorted(plain, key=lambda font: (font.weight not in (400, "normal", "regular"), font.name)):
        if font.fname not in further and (found := _find_characters(font.fname, lacking)):
            further[font.fname] = found
            lacking -= found
        if not lacking:
            break
    return default, further, lacking | never


def _find_characters(file: str, wanted: frozenset[str]) -> frozenset[str]:
    """The wanted characters that a font file can draw."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(file)
    except (OSError, RuntimeError):  # gone, or of a kind that matplotlib cannot read
        return frozenset()
    # A bitmap font, such as one of coloured emoji, fails when drawing.
    return frozenset(char for char in wanted if font.scalable and font.get_char_index(ord(char)))
