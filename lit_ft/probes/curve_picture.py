"""The learning curve as a picture: accuracy by images a class, and the fitted curve with what it promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from lit_ft.probes.findings.image_findings import LabelsNeeded

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 428, 34, 226
"""The sides of the axes."""

_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Distances of marks on the axis of the accuracy, of which there are six at most."""

Place = Callable[[float], float]
Range = tuple[float, float, float]
"""Images a class, and the least and the most accuracy."""


def draw_curve(labels: LabelsNeeded) -> str:
    """The curve as SVG: measured, with 95% intervals, and dashed the fitted one with its own; the page has the colours.

    Args:
        labels: What more labels would bring.
    """
    measured = [(float(size), *interval) for size, interval in zip(labels.sizes, labels.intervals, strict=True)]
    fitted = [(size, max(0.0, low), min(1.0, high)) for size, _, low, high in labels.fitted]
    num_behind = sum(point[0] <= labels.sizes[-1] for point in fitted)
    ahead = fitted[max(0, num_behind - 1) :]
    last = fitted[-1][0] if fitted else labels.sizes[-1]
    step, bounds = _choose_marks([value for _, *values in [*measured, *ahead] for value in values])

    def x(size: float) -> float:
        share = math.log(size / labels.sizes[0]) / max(1e-9, math.log(last / labels.sizes[0]))
        return _LEFT + 12 + share * (_RIGHT - _LEFT - 24)

    def y(value: float) -> float:
        inside = min(max(value, bounds[0]), bounds[1])
        return _BOTTOM - (inside - bounds[0]) / (bounds[1] - bounds[0]) * (_BOTTOM - _TOP)

    points = list(zip(labels.sizes, labels.accuracies, strict=True))
    parts = [
        *_axes(x, y, step, bounds, labels.sizes[0], last),
        _band("fit", ahead, x, y),
        _band("band", measured, x, y),
        _line("dashed", ((size, middle) for size, middle, _, _ in labels.fitted), x, y),
        _line("line", points, x, y),
        *(f"<circle cx='{x(size):.1f}' cy='{y(value):.1f}' r='3.5'/>" for size, value in points),
        *_legend(bool(labels.fitted)),
    ]
    return f"<svg class='plot' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{describe_curve(labels)}'>" + (
        "".join(parts) + "</svg>"
    )


def describe_curve(labels: LabelsNeeded) -> str:
    """The curve in words.

    >>> describe_curve(LabelsNeeded([3, 5], [0.7, 0.8], [(0.6, 0.8)] * 2, [], None, None, {}, "ant", None))
    'Accuracy by images a class: 70.0% with 3, 80.0% with 5'
    """
    points = zip(labels.sizes, labels.accuracies, strict=True)
    text = "Accuracy by images a class: " + ", ".join(f"{value:.1%} with {size:,}" for size, value in points)
    if not labels.fitted:
        return text
    size, middle, low, high = labels.fitted[-1]
    return f"{text}; fitted: {middle:.1%} ({low:.1%} to {high:.1%}) with {size:,.0f}"


def _choose_marks(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The distance of marks, and the first and the last of them, between which the values are."""
    for step in _STEPS:
        low, high = math.floor(min(values) / step + 1e-9), math.ceil(max(values) / step - 1e-9)
        if high - low <= 5:
            break
    return step, (low * step, max(high, low + 1) * step)


def _axes(x: Place, y: Place, step: float, bounds: tuple[float, float], first: float, last: float) -> list[str]:
    parts = []
    for index in range(round((bounds[1] - bounds[0]) / step) + 1):
        value = bounds[0] + index * step
        parts.append(f"<line class='grid' x1='{_LEFT}' x2='{_RIGHT}' y1='{y(value):.1f}' y2='{y(value):.1f}'/>")
        parts.append(f"<text x='{_LEFT - 6}' y='{y(value) + 4:.1f}' text-anchor='end'>{value:.0%}</text>")
    marks = [mark * 10**power for power in range(7) for mark in (1, 2, 5) if first <= mark * 10**power <= last]
    shown = marks if len(marks) <= 8 else [mark for mark in marks if str(mark)[0] == "1"]
    parts += [f"<text x='{x(mark):.1f}' y='{_BOTTOM + 18}' text-anchor='middle'>{mark:,}</text>" for mark in shown]
    middle = (_LEFT + _RIGHT) / 2
    return [*parts, f"<text x='{middle}' y='{_HEIGHT - 8}' text-anchor='middle'>images a class</text>"]


def _line(name: str, points: Iterable[tuple[float, float]], x: Place, y: Place) -> str:
    places = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)
    return f"<polyline class='{name}' points='{places}'/>" if places else ""


def _band(name: str, ranges: Sequence[Range], x: Place, y: Place) -> str:
    around = [(size, low) for size, low, _ in ranges] + [(size, high) for size, _, high in reversed(ranges)]
    places = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in around)
    return f"<polygon class='{name}' points='{places}'/>" if places else ""


def _legend(is_fitted: bool) -> list[str]:
    entries = [("line", "measured, 95% interval"), ("dashed", "fitted, 95% interval")]
    shown = entries if is_fitted else entries[:1]
    parts = []
    for (name, text), left in zip(shown, (_LEFT, _LEFT + 190), strict=False):
        parts.append(f"<line class='{name}' x1='{left}' x2='{left + 22}' y1='14' y2='14'/>")
        parts.append(f"<text x='{left + 28}' y='18'>{text}</text>")
    return parts
