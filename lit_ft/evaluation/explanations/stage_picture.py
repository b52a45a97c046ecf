"""A picture of what fine-tuning changed, stage by stage, as SVG whose colours are those of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from lit_ft.evaluation.explanations.transfer import StageChange, Transfer
from lit_ft.evaluation.line_chart import find_marks

_ROW = 26
_PANEL, _GAP, _LAST = 200, 70, 100
"""Width of a panel, and of what is behind one, where the values stand; pairs of values are behind the last."""
_TOP, _BOTTOM = 44, 26
"""Heights above and below the rows."""

Value = Callable[[StageChange], float]


def draw_stages(transfer: Transfer) -> str:
    """The stages as rows, shallow to deep, with a panel for what is known of each: drift, CKA, scores of probes.

    Returns:
        The picture, or nothing where nothing is known.
    """
    panels: list[tuple[str, str, Sequence[Value]]] = [
        ("Drift of the weights", "change, as a share of their norm", [lambda stage: stage.drift]),
        ("Likeness of the features", "linear CKA, 1 is unchanged", [lambda stage: stage.cka]),
        (
            f"{transfer.score.capitalize()} of linear probes",
            "before (ring) and after (dot)",
            [lambda stage: stage.before, lambda stage: stage.after],
        ),
    ]
    known = [panel for panel in panels if any(_known(transfer.stages, value) for value in panel[2])]
    if not known:
        return ""
    left = 24 + 7 * max(len(stage.name) for stage in transfer.stages)
    width = left + len(known) * (_PANEL + _GAP) + (_LAST - _GAP) * (known[-1] is panels[-1])
    height = _TOP + _ROW * len(transfer.stages) + _BOTTOM
    parts = [_text(0, _middle(row), stage.name, "start") for row, stage in enumerate(transfer.stages)]
    for index, (title, unit, values) in enumerate(known):
        parts += _panel(left + index * (_PANEL + _GAP), title, unit, values, transfer.stages)
    label = escape("; ".join(filter(None, map(_describe, transfer.stages))), quote=True)
    size = f"viewBox='0 0 {width} {height}' style='min-width:{width * 0.8:.0f}px;max-width:{width}px'"
    return f"<svg class='stages' {size} role='img' aria-label='{label}'>{''.join(parts)}</svg>"


def _panel(left: float, title: str, unit: str, values: Sequence[Value], stages: Sequence[StageChange]) -> Iterator[str]:
    """The axis of a panel, and a bar for each stage, or a ring and a dot."""
    found = [number for value in values for number in _known(stages, value)]
    is_pair = len(values) > 1
    # Bars begin at 0, also where all are 0.
    marks = find_marks(min(found), max(found)) if is_pair else find_marks(min(0.0, *found), max(found) or 1.0)

    def across(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * _PANEL

    bottom = _TOP + _ROW * len(stages)
    yield _text(left, 14, title, "start", "title")
    yield _text(left, 30, unit, "start", "unit")
    for mark in marks:
        yield f"<line class='grid' x1='{across(mark):.1f}' x2='{across(mark):.1f}' y1='{_TOP}' y2='{bottom}'/>"
    for mark in marks[:: max(1, (len(marks) - 1) // 3)]:
        yield _text(across(mark), bottom + 17, f"{mark:.4g}", "middle", "unit")
    for row, stage in enumerate(stages):
        numbers = [value(stage) for value in values]
        y = _middle(row) - 4
        if not is_pair and math.isfinite(numbers[0]):
            start, end = sorted((across(0.0), across(numbers[0])))
            yield f"<rect class='bar' x='{start:.1f}' y='{y - 7:.1f}' width='{max(1.0, end - start):.1f}' height='14'/>"
        elif is_pair:
            yield from _pair([across(number) if math.isfinite(number) else None for number in numbers], y)
        words = " → ".join(f"{number:.3f}" for number in numbers if math.isfinite(number))
        yield _text(left + _PANEL + 6, _middle(row), words, "start", "unit")


def _pair(places: Sequence[float | None], y: float) -> Iterator[str]:
    """A ring for what was before, a dot for what is after, and a line from one to the other."""
    ring, dot = places
    if ring is not None and dot is not None:
        yield f"<line class='way' x1='{ring:.1f}' x2='{dot:.1f}' y1='{y}' y2='{y}'/>"
    if dot is not None:
        yield f"<circle class='dot' cx='{dot:.1f}' cy='{y}' r='5'/>"
    if ring is not None:
        yield f"<circle class='ring' cx='{ring:.1f}' cy='{y}' r='5'/>"


def _known(stages: Sequence[StageChange], value: Value) -> list[float]:
    return [number for number in map(value, stages) if math.isfinite(number)]


def _describe(stage: StageChange) -> str:
    """A stage in words, for who hears the page."""
    numbers = {
        "drift": stage.drift,
        "CKA": stage.cka,
        "probe before": stage.before,
        "probe after": stage.after,
    }
    known = [f"{name} {number:.3f}" for name, number in numbers.items() if math.isfinite(number)]
    return f"{stage.name}: {', '.join(known)}" if known else ""


def _middle(row: int) -> float:
    """The line on which the text of a row stands."""
    return _TOP + _ROW * (row + 0.5) + 4


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f" class='{kind}'" if kind else ""
    return f"<text{style} x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"
