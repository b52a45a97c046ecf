"""Names in figures: drawn as they are, in fonts that have their characters, or else by number."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple


class Names(NamedTuple):
    """Names as a figure can show them.

    Args:
        labels: What is drawn of each.
        style: The properties of matplotlib's ``Text`` to draw them with.
        note: A line to add to the label of an axis where some are drawn by their number, else nothing.
    """

    labels: list[str]
    style: dict[str, Any]
    note: str


def drawable(names: Sequence[str]) -> Names:
    """What a figure shows of names: without mathematics, and never a box in the place of a character.

    A name with a character that no font here has is drawn as ``#`` and its number, from 0.

    Args:
        names: The names, such as those of classes.
    """
    import matplotlib

    wanted = frozenset("".join(names))
    others, lacking = _fonts(wanted)
    labels = [f"#{i}" if lacking & set(name) else name for i, name in enumerate(names)]
    style = {"parse_math": False, "fontfamily": [*matplotlib.rcParams["font.family"], *others]}
    return Names(labels, style, "\n(# and a number: no font here has the name)" if labels != list(names) else "")


@lru_cache(8)
def _fonts(wanted: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families that have the characters that the default font lacks, and the characters that none has."""
    from matplotlib import font_manager

    never = {char for char in wanted if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    lacking = wanted - never - _has(font_manager.findfont(font_manager.FontProperties()), wanted)
    families: list[str] = []
    if lacking:
        plain = [
            font
            for font in font_manager.fontManager.ttflist
            # The last resort, which matplotlib carries, draws a box for every character that there is.
            if (font.style, font.variant) == ("normal", "normal") and not font.name.startswith("Last Resort")
        ]
        # Regular weights first, then by name, so that the same font is chosen each time.
        for font in sorted(plain, key=lambda font: (font.weight not in (400, "normal", "regular"), font.name)):
            if font.name not in families and _has(font.fname, lacking):
                chosen = font_manager.findfont(font_manager.FontProperties(family=[font.name]))
                if found := _has(chosen, lacking):
                    families.append(font.name)
                    lacking -= found
            if not lacking:
                break
    return tuple(families), frozenset(lacking | never)


def _has(file: str, wanted: frozenset[str]) -> frozenset[str]:
    """Those of some characters that a font file can draw."""
    from matplotlib import font_manager

    try:
        font = font_manager.get_font(file)
    except (OSError, RuntimeError):  # gone, or of a kind that matplotlib cannot read
        return frozenset()
    # A font of bitmaps, such as one of coloured emoji, fails when it is drawn with.
    return frozenset(char for char in wanted if font.scalable and font.get_char_index(ord(char)))
