"""Line charts as SVG, whose colours are those of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 510, 30, 222
"""The sides of the axes."""

_MOST_MARKS = 6

_COLOURS = 6
"""Number of colours of lines that the page has, as the classes l0, l1 and so on."""

Points = Sequence[tuple[float, float]]


def draw_lines(
    series: Mapping[str, Points], x_title: str, events: Mapping[float, str] | None = None, log: bool = False
) -> str:
    """Lines with their names, axes, and vertical lines at events.

    Args:
        series: Points of each line by its name; those that are not finite, or not above 0 on a logarithmic axis, are
            left out.
        x_title: What is on the horizontal axis.
        events: What happened at places on that axis.
        log: Whether the vertical axis is logarithmic.

    Returns:
        The picture, or nothing where there is no point.
    """
    shown = {name: [(x, y) for x, y in points if _is_drawn(y, log)] for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    xs, ys = (sorted(point[axis] for points in shown.values() for point in points) for axis in (0, 1))
    marks = _log_marks(ys[0], ys[-1]) if log else find_marks(ys[0], ys[-1])
    low, high = min(ys[0], marks[0]), max(ys[-1], marks[-1])

    def across(x: float) -> float:
        share = (x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5
        return _LEFT + share * (_RIGHT - _LEFT)

    def up(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return _BOTTOM - share * (_BOTTOM - _TOP)

    below = [mark for mark in find_marks(xs[0], xs[-1]) if xs[0] <= mark <= xs[-1]]
    parts = [
        *(part for mark in marks for part in _draw_mark(mark, up(mark))),
        *(_text(across(mark), _BOTTOM + 16, f"{mark:.4g}", "middle") for mark in below),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x_title, "middle"),
        *(_draw_event(across(event), name) for event, name in (events or {}).items()),
    ]
    left = float(_LEFT)
    for index, (name, points) in enumerate(shown.items()):
        parts += _draw_line(f"l{index % _COLOURS}", name, [(across(x), up(y)) for x, y in points], left)
        left += 34 + 6.6 * len(name)
    words = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in shown.items())
    size = f"viewBox='0 0 {max(_WIDTH, math.ceil(left))} {_HEIGHT}'"
    label = escape(f"{words}, by {x_title}", quote=True)
    return f"<svg class='lines' {size} role='img' aria-label='{label}'>{''.join(parts)}</svg>"


def _draw_mark(mark: float, y: float) -> list[str]:
    line = f"<line class='grid' x1='{_LEFT}' x2='{_RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
    return [line, _text(_LEFT - 6, y + 4, f"{mark:.4g}", "end")]


def _draw_event(x: float, name: str) -> str:
    place = f"x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_BOTTOM}'"
    return f"<line class='event' {place}><title>{escape(name)}</title></line>"


def _draw_line(colour: str, name: str, places: Points, left: float) -> list[str]:
    """A line with its points, and its name above the chart, from ``left`` on."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [
        f"<polyline class='line {colour}' points='{joined}'/>",
        *(f"<circle class='{colour}' cx='{x:.1f}' cy='{y:.1f}' r='2.5'/>" for x, y in places),
        f"<line class='line {colour}' x1='{left:.0f}' x2='{left + 16:.0f}' y1='14' y2='14'/>",
        _text(left + 20, 18, name, "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def find_marks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range.

    >>> find_marks(0.3, 1.7), find_marks(2, 2)
    ([0.0, 0.5, 1.0, 1.5, 2.0], [1.95, 2.0, 2.05])
    """
    width = high - low or max(abs(high) * 0.1, 1e-9)
    rough = width / (_MOST_MARKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_marks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose a range."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _is_drawn(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)
