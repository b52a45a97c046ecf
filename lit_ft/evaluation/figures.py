"""Figures of a run: its plan and the confusion matrix, with names in fonts that have their characters."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from lit_ft.unfreezing.plan import Plan

MAX_NUMBERED_CLASSES = 30
"""Largest number of classes for which cells have their counts."""


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


def draw_confusion(matrix: torch.Tensor, names: Sequence[str]) -> Any:
    """A picture of the counts ``(K, K)`` of a confusion matrix: rows are true classes, shaded by their share."""
    from matplotlib.figure import Figure

    num = len(names)
    side = max(4.0, min(16.0, 0.35 * num + 2.0))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / matrix.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    labels, style, note = prepare_names(names)
    axes.set_xlabel(f"predicted{note}")
    axes.set_ylabel("true")
    style["fontsize"] = 8 if num <= MAX_NUMBERED_CLASSES else 5
    axes.set_xticks(range(num), labels, rotation=90, **style)
    axes.set_yticks(range(num), labels, **style)
    for i, j in matrix.nonzero().tolist() if num <= MAX_NUMBERED_CLASSES else ():
        color = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=6, color=color)
    return figure


def prepare_names(names: Sequence[str]) -> tuple[list[str], dict[str, Any], str]:
    """Names as a figure can draw them: without mathematics, and without boxes for missing characters.

    A name with a character that no installed font has is drawn as ``#`` and its number, from 0.

    Returns:
        The text to draw for each name, the properties of matplotlib's ``Text`` to draw them with, and a line to add to
        the label of an axis if some are drawn as numbers, else empty.
    """
    import matplotlib

    families, missing = _find_fonts(frozenset("".join(names)))
    labels = [f"#{i}" if missing & set(name) else name for i, name in enumerate(names)]
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
