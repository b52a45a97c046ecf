"""Figures of a run: plan, confusion matrix and images, with names in fonts that have their characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_ft.unfreezing.plan import Plan

MAX_NUMBERED_CLASSES = 30
"""Largest number of classes for which cells have their shares and counts."""

_FONT_POINTS = 8
_CAPTION_PIXELS = 112
_LINE_PIXELS = 15  # height of a line of that size at 100 dots an inch


def draw_plan(plan: Plan, starts: Sequence[int], num_epochs: int | None, rates: dict[str, float]) -> Any:
    """A picture of a plan: one row per stage, with bars where it trains, darker for higher learning rates.

    Args:
        plan: The plan.
        starts: First epochs of the phases that have begun, from `Plan.phase_starts`.
        num_epochs: Length of the run in epochs, if it has one.
        rates: The learning rate of each stage.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    first = [starts[i] if i < len(starts) else phase.first_epoch for i, phase in enumerate(plan.phases)]
    end = num_epochs if num_epochs is not None else first[-1] + max(1, first[-1] // 2)
    figure = Figure(figsize=(8.0, 1.2 + 0.35 * len(plan.stages)), layout="constrained")
    axes = figure.add_subplot()
    largest = max(rates.values(), default=1.0)
    spans = list(zip(plan.phases, pairwise([*first, end]), strict=True))
    for row, stage in enumerate(plan.stages):
        bars = [(start, stop - start) for phase, (start, stop) in spans if stage in phase.trainable]
        shade = 0.25 + 0.75 * rates.get(stage, largest) / largest
        # In one call: a bar for each stage and phase takes half a minute with a hundred stages.
        axes.broken_barh(bars, (row - 0.4, 0.8), color="tab:blue", alpha=shade)
    for start in first:
        axes.axvline(start, color="0.4", linewidth=0.8)
    names, style, note = prepare_names(plan.stages)
    labels = [
        f"{name}, lr {rates[stage]:.2g}" if stage in rates else name
        for stage, name in zip(plan.stages, names, strict=True)
    ]
    axes.set_yticks(range(len(labels)), labels, **style)
    axes.set_xlim(0, max(1, end))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    is_open = any(phase.plateau for phase in plan.phases[len(starts) - 1 :])
    earliest = " (phases that end by a plateau: their earliest end)" if is_open else ""
    axes.set_xlabel(f"epoch{earliest}{note}")
    return figure


def draw_confusion(matrix: torch.Tensor, names: Sequence[str], title: str = "") -> Any:
    """A picture of a confusion matrix: rows are true classes, shaded by their share and with it as a percentage.

    Args:
        matrix: Numbers of images ``(K, K)``.
        names: The classes.
        title: What it is of.
    """
    from matplotlib.figure import Figure

    num = len(names)
    is_numbered = num <= MAX_NUMBERED_CLASSES
    side = max(4.5, min(16.0, (0.62 if is_numbered else 0.2) * num + 2.0))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    labels, style, note = prepare_names(names)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(f"predicted{note}")
    axes.set_ylabel("true")
    style["fontsize"] = 10 if is_numbered else 6
    axes.set_xticks(range(num), labels, rotation=90, **style)
    axes.set_yticks(range(num), labels, **style)
    for i, j in matrix.nonzero().tolist() if is_numbered else ():
        color = "white" if shares[i, j] > 0.5 else "black"
        cell = f"{shares[i, j]:.0%}\n{int(matrix[i, j])}"
        axes.text(j, i, cell, ha="center", va="center", fontsize=9, color=color)
    return figure


def draw_images(images: torch.Tensor, captions: Sequence[Sequence[str]], columns: int = 8) -> Any:
    """A picture of small images, uint8 ``(B, C, H, W)``, with the lines of a caption below each."""
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    factor = max(1, _CAPTION_PIXELS // max(images.shape[2:]))  # of those that are smaller than their captions
    images = images.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    height, width = images.shape[2:]
    step_x, step_y = max(width, _CAPTION_PIXELS) + 8, height + 8 + _LINE_PIXELS * max(map(len, captions))
    canvas = torch.full((rows * step_y, columns * step_x, 3), 255, dtype=torch.uint8)
    figure = Figure(figsize=(columns * step_x / 100, rows * step_y / 100), dpi=100)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    labels, style, _ = prepare_names([line for lines in captions for line in lines], number="?")
    words = iter(labels)
    for i, lines in enumerate(captions):
        y, x = i // columns * step_y, i % columns * step_x
        left = x + (step_x - width) // 2
        canvas[y + 4 : y + 4 + height, left : left + width] = as_rgb(images[i]).permute(1, 2, 0)
        for number in range(len(lines)):
            place = (x + step_x / 2, y + height + 6 + number * _LINE_PIXELS)
            axes.text(*place, next(words), ha="center", va="top", fontsize=_FONT_POINTS, **style)
    axes.imshow(canvas.numpy(), interpolation="nearest", aspect="auto")
    return figure


def as_rgb(images: torch.Tensor) -> torch.Tensor:
    """The first three channels of images ``(..., C, H, W)``, or the first one as grey."""
    channels = 3 if images.shape[-3] >= 3 else 1
    return images[..., :channels, :, :].expand(*images.shape[:-3], 3, -1, -1)


def shorten(text: str, width: int) -> str:
    """A text that fits into a number of characters.

    >>> shorten("golden retriever", 8), shorten("cat", 8)
    ('golden …', 'cat')
    """
    return text if len(text) <= width else f"{text[: width - 1]}…"


def render(figure: Any) -> NDArray[np.uint8]:
    """The pixels of a figure ``(H, W, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def prepare_names(names: Sequence[str], number: str = "#") -> tuple[list[str], dict[str, Any], str]:
    """Names as a figure can draw them: without mathematics, and without boxes for missing characters.

    A name with a character that no installed font has is drawn as ``#`` and its number, from 0.

    Args:
        names: The names.
        number: The mark before the number.

    Returns:
        The text to draw for each name, the properties of matplotlib's ``Text`` to draw them with, and a line to add to
        the label of an axis if some are drawn as numbers, else empty.
    """
    import matplotlib

    families, missing = _find_fonts(frozenset("".join(names)))
    labels = [f"{number}{i}" if missing & set(name) else name for i, name in enumerate(names)]
    style = {"parse_math": False, "fontfamily": [*matplotlib.rcParams["font.family"], *families]}
    return labels, style, "\n(# and a number: no font here has the name)" if labels != list(names) else ""


@lru_cache(8)
def _find_fonts(wanted: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Font families with the characters that the default font lacks, and the characters that no font has."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    never = frozenset(char for char in wanted if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp"))
    lacking = wanted - never - _find_characters(findfont(FontProperties()), wanted)
    if not lacking:
        return (), never
    plain = [
        font
        for font in fontManager.ttflist
        # Matplotlib's font of last resort draws a box for every character.
        if (font.style, font.variant) == ("normal", "normal") and not font.name.startswith("Last Resort")
    ]
    families: list[str] = []
    # Regular weights first, then by name, so that the same font is chosen each time.
    for font in sorted(plain, key=lambda font: (font.weight not in (400, "normal", "regular"), font.name)):
        is_new = font.name not in families and _find_characters(font.fname, lacking)
        if is_new and (found := _find_characters(findfont(FontProperties(family=[font.name])), lacking)):
            families.append(font.name)
            lacking -= found
        if not lacking:
            break
    return tuple(families), lacking | never


def _find_characters(file: str, wanted: frozenset[str]) -> frozenset[str]:
    """The wanted characters that a font file can draw."""
    from matplotlib.font_manager import get_font

    try:
        font = get_font(file)
    except (OSError, RuntimeError):  # gone, or of a kind that matplotlib cannot read
        return frozenset()
    # A bitmap font, such as one of coloured emoji, fails when drawing.
    return frozenset(char for char in wanted if font.scalable and font.get_char_index(ord(char)))
