"""Charts of lines, points and spans as SVG, whose colours are those of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 510, 30, 222
"""The sides of the axes."""

_MOST_MARKS = 6

_COLOURS = 6
"""Number of colours of lines that the page has, as the classes l0, l1 and so on; those of further lines are dashed."""

_ROW = 18
"""Height of a row of names above a chart."""

Points = Sequence[tuple[float, float]]


def draw_lines(
    series: Mapping[str, Points],
    x_title: str,
    events: Mapping[float, str] | None = None,
    log: bool = False,
    guide: tuple[float, float] | None = None,
) -> str:
    """Lines with their names, axes, and vertical lines at events.

    Args:
        series: Points of each line by its name; those that are not finite, or not above 0 on a logarithmic axis, are
            left out.
        x_title: What is on the horizontal axis.
        events: What happened at places on that axis.
        log: Whether the vertical axis is logarithmic.
        guide: The ends of a line from where both numbers are the first to where both are the second, such as an ideal.

    Returns:
        The picture, or nothing where there is no point.
    """
    shown = {name: [(x, y) for x, y in points if _is_drawn(y, log)] for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    every = [point for points in shown.values() for point in points] + [(end, end) for end in guide or ()]
    xs, ys = (sorted(point[axis] for point in every) for axis in (0, 1))
    marks = _log_marks(ys[0], ys[-1]) if log else find_marks(ys[0], ys[-1])
    low, high = min(ys[0], marks[0]), max(ys[-1], marks[-1])

    def across(x: float) -> float:
        share = (x - xs[0]) / (xs[-1] - xs[0]) if xs[-1] > xs[0] else 0.5
        return _LEFT + share * (_RIGHT - _LEFT)

    def up(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if log else (y - low) / (high - low)
        return _BOTTOM - share * (_BOTTOM - _TOP)

    below = [mark for mark in find_marks(xs[0], xs[-1]) if xs[0] <= mark <= xs[-1]]
    if all(x == int(x) for x in xs) and xs[-1] > xs[0]:  # there is no half epoch
        below = [mark for mark in below if mark == int(mark)]
    starts = _place_names(list(shown))
    above = _ROW * starts[-1][1]
    parts = [
        *(part for mark in marks for part in _draw_mark(mark, up(mark))),
        *(_text(across(mark), _BOTTOM + 16, f"{mark:.4g}", "middle") for mark in below),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x_title, "middle"),
        *(_draw_event(across(event), name) for event, name in (events or {}).items() if xs[0] <= event <= xs[-1]),
    ]
    if guide:
        ends = (across(guide[0]), up(guide[0])), (across(guide[1]), up(guide[1]))
        parts.append("<line class='event' x1='{:.1f}' y1='{:.1f}' x2='{:.1f}' y2='{:.1f}'/>".format(*ends[0], *ends[1]))
    for index, (name, points) in enumerate(shown.items()):
        dashed = " dashed" * (index >= _COLOURS)
        own = [(across(x), up(y), f"{name}: {y:.4g} ({x_title} {x:g})") for x, y in points]
        parts += _draw_line(f"l{index % _COLOURS}", own, dashed)
        left, row = starts[index]
        parts += _draw_name(f"l{index % _COLOURS}", name, left, 14 - above + _ROW * row, dashed)
    words = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in shown.items())
    size = f"viewBox='0 {-above} {_WIDTH} {_HEIGHT + above}'"
    return _picture("lines", size, f"{words}, by {x_title}", parts)


def _picture(kind: str, size: str, label: str, parts: Sequence[str]) -> str:
    return f"<svg class='{kind}' {size} role='img' aria-label='{escape(label, quote=True)}'>{''.join(parts)}</svg>"


def _draw_mark(mark: float, y: float) -> list[str]:
    line = f"<line class='grid' x1='{_LEFT}' x2='{_RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
    return [line, _text(_LEFT - 6, y + 4, f"{mark:.4g}", "end")]


def _draw_event(x: float, name: str) -> str:
    place = f"x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP}' y2='{_BOTTOM}'"
    return f"<line class='event' {place}><title>{escape(name)}</title></line>"


def _place_names(names: Sequence[str]) -> list[tuple[float, int]]:
    """Where each name begins, and in which row."""
    places: list[tuple[float, int]] = []
    left, row = float(_LEFT), 0
    for name in names:
        width = 34 + 6.6 * len(name)
        if left + width > _WIDTH and left > _LEFT:
            left, row = float(_LEFT), row + 1
        places.append((left, row))
        left += width
    return places


def _draw_line(colour: str, places: Sequence[tuple[float, float, str]], dashed: str) -> list[str]:
    """A line, and its points with what they are."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    return [
        f"<polyline class='line {colour}{dashed}' points='{joined}'/>",
        *(
            f"<circle class='{colour}' cx='{x:.1f}' cy='{y:.1f}' r='2.5'><title>{escape(what)}</title></circle>"
            for x, y, what in places
        ),
    ]


def _draw_name(colour: str, name: str, x: float, y: float, dashed: str) -> list[str]:
    place = f"x1='{x:.0f}' x2='{x + 16:.0f}' y1='{y:.0f}' y2='{y:.0f}'"
    return [f"<line class='line {colour}{dashed}' {place}/>", _text(x + 20, y + 4, name, "start")]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def draw_spans(rows: Mapping[str, Sequence[tuple[float, float]]], end: float, x_title: str) -> str:
    """Bars over a common axis, such as the epochs in which each stage trains.

    Args:
        rows: The beginning and the end of each bar, by the name of its row; the first row is at the top.
        end: Where the axis ends; it begins at 0.
        x_title: What is on it.
    """
    left = 20 + 7 * max(map(len, rows), default=0)
    height, scale = 26 * len(rows), (_RIGHT - left) / (end or 1)
    parts = []
    for row, (name, bars) in enumerate(rows.items()):
        y = 26 * row
        parts.append(_text(left - 8, y + 17, name, "end"))
        parts.append(f"<rect class='track' x='{left}' y='{y + 3}' width='{_RIGHT - left}' height='20'/>")
        for begin, stop in bars:
            place = f"x='{left + begin * scale:.1f}' y='{y + 3}' width='{(stop - begin) * scale:.1f}' height='20'"
            what = escape(f"{name}: {x_title}s {begin:g} to {stop - 1:g}")
            parts.append(f"<rect class='bar' {place}><title>{what}</title></rect>")
    marks = [mark for mark in find_marks(0, end) if 0 <= mark <= end and mark == int(mark)]
    parts += [_text(left + mark * scale, height + 16, f"{mark:g}", "middle") for mark in marks]
    parts.append(_text((left + _RIGHT) / 2, height + 32, x_title, "middle"))
    spans = "; ".join(f"{n} {', '.join(f'{a:g} to {b:g}' for a, b in bars) or 'never'}" for n, bars in rows.items())
    label = f"{x_title}s: {spans}"
    return _picture("lines", f"viewBox='0 0 {_WIDTH} {height + 38}'", label, parts)


def draw_points(points: Mapping[str, tuple[float, float]], x_title: str, y_title: str) -> str:
    """Points with their names on equal axes, and the line on which both numbers are equal.

    Returns:
        The picture, or nothing where there is no point that is finite.
    """
    shown = {name: (x, y) for name, (x, y) in points.items() if math.isfinite(x) and math.isfinite(y)}
    if not shown:
        return ""
    numbers = [number for point in shown.values() for number in point]
    marks = find_marks(min(numbers), max(numbers))
    width = marks[-1] - marks[0]

    def across(x: float) -> float:
        return _LEFT + (x - marks[0]) / width * (_RIGHT - _LEFT)

    def up(y: float) -> float:
        return _BOTTOM - (y - marks[0]) / width * (_BOTTOM - _TOP)

    parts = [
        *(part for mark in marks for part in _draw_mark(mark, up(mark))),
        *(_text(across(mark), _BOTTOM + 16, f"{mark:.4g}", "middle") for mark in marks),
        _text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, x_title, "middle"),
        _text(_LEFT, _TOP - 12, y_title, "start"),
        f"<line class='event' x1='{_LEFT}' x2='{_RIGHT}' y1='{_BOTTOM}' y2='{_TOP}'/>",
        *(
            f"<circle class='l0' cx='{across(x):.1f}' cy='{up(y):.1f}' r='3'><title>{escape(name)}</title></circle>"
            for name, (x, y) in shown.items()
        ),
    ]
    label = f"{y_title} by {x_title} of {len(shown)} images"
    return _picture("lines", f"viewBox='0 0 {_WIDTH} {_HEIGHT}'", label, parts)


def draw_matrix(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The numbers of images by true class (rows) and predicted class, as shares of each row; for many classes."""
    cell, longest = 10, min(24, max(map(len, names)))
    left = 8 + 6 * longest
    short = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names]
    side = cell * len(names)
    parts = [f"<rect class='track' x='{left}' y='{left}' width='{side}' height='{side}'/>"]
    for row, (name, numbers) in enumerate(zip(names, counts, strict=True)):
        y, total = left + cell * row, max(1, sum(numbers))
        parts.append(_text(left - 4, y + 8, short[row], "end"))
        x = left + cell * row + 8
        parts.append(f"<text transform='translate({x} {left - 4}) rotate(-90)'>{escape(short[row])}</text>")
        for column, count in enumerate(numbers):
            if count:
                what = escape(f"{name}, predicted {names[column]}: {count} of {total}")
                kind = "hit" if row == column else "miss"
                place = f"x='{left + cell * column}' y='{y}' width='{cell}' height='{cell}'"
                shade = f"{place} opacity='{0.25 + 0.75 * count / total:.2f}'"
                parts.append(f"<rect class='{kind}' {shade}><title>{what}</title></rect>")
    size = left + side + 4
    label = f"confusion matrix of {len(names)} classes"
    return _picture(
        "cells", f"style='min-width:{0.8 * size:.0f}px;max-width:{size}px' viewBox='0 0 {size} {size}'", label, parts
    )


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
