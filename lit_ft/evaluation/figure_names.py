"""Names in figures: fonts that have their characters, or else numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple


class FigureNames(NamedTuple):
    """Names that a figure can draw.

    Args:
        labels: The text to draw for each.
        style: Properties of matplotlib's ``Text`` to draw them with.
        note: Line to add to the label of an axis if some are drawn as numbers, else empty.
    """

    labels: list[str]
    style: dict[str, Any]
    note: str


def prepare_names(names: Sequence[str]) -> FigureNames:
    """Names as a figure can draw them: without mathematics, and without boxes for missing characters.

    A name with a character that no installed font has is drawn as ``#`` and its number, from 0.

    Args:
        names: The names, such as those of classes.
    """
    import matplotlib

    wanted = frozenset("".join(names))
    families, missing = _find_fonts(wanted)
    labels = [f"#{i}" if missing & set(name) else name for i, name in enumerate(names)]
    style = {"parse_math": False, "fontfamily": [*matplotlib.rcParams["font.family"], *families]}
    return FigureNames(labels, style, "\n(# and a number: no font here has the name)" if labels != list(names) else "")


@lru_cache(8)
def _find_fonts(wanted: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Font families with the characters that the default font lacks, and the characters that no font has."""
    from matplotlib import font_manager

    never = {char for char in wanted if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    lacking = wanted - never - _find_characters(font_manager.findfont(font_manager.FontProperties()), wanted)
    families: list[str] = []
    if lacking:
        plain = [
            font
            for font in font_manager.fontManager.ttflist
            # Matplotlib's font of last resort draws a box for every character.
            if (font.style, font.variant) == ("normal", "normal") and not font.name.startswith("Last Resort")
        ]
        # Regular weights first, then by name, so that the same font is chosen each time.
        for font in sorted(plain, key=lambda font: (font.weight not in (400, "normal", "regular"), font.name)):
            if font.name not in families and _find_characters(font.fname, lacking):
                chosen = font_manager.findfont(font_manager.FontProperties(family=[font.name]))
                if found := _find_characters(chosen, lacking):
                    families.append(font.name)
                    lacking -= found
            if not lacking:
                break
    return tuple(families), frozenset(lacking | never)


def _find_characters(file: str, wanted: frozenset[str]) -> frozenset[str]:
    """The wanted characters that a font file can draw."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(file)
    except (OSError, RuntimeError):  # gone, or of a kind that matplotlib cannot read
        return frozenset()
    # A bitmap font, such as one of coloured emoji, fails when drawing.
    return frozenset(char for char in wanted if font.scalable and font.get_char_index(ord(char)))
