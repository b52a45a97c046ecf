"""Reports of a comparison of runs: tables and lines that the terminal and the page share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from lit_ft.console import format_duration, format_table, format_value
from lit_ft.data.pages import render_page, thumbnail
from lit_ft.errors import printable
from lit_ft.evaluation.comparison import ComparedRun, Pair, RunComparison
from lit_ft.tasks.monitored import METRICS

MAX_IMAGES = 24
"""Images of each list that a page shows."""

_LONGEST = 60
"""Characters of an option's value that a table shows."""

TextRows = list[list[str]]


def format_interval(ends: Sequence[float] | None) -> str:
    """The ends of an interval; nothing where there are none."""
    return f" ({format_value(ends[0])} to {format_value(ends[1])})" if ends else ""


def tabulate_runs(found: RunComparison) -> TextRows:
    """A column for each run: its metrics with intervals, what was handed back, and its time."""
    order = [name for metrics in METRICS.values() for name in metrics]
    known = {name for run in found.runs for name in run.metrics}
    names = [name for name in dict.fromkeys(order) if name in known] + sorted(known - set(order))
    rows = [_head("metric", found)]
    for name in names:
        cells = [
            format_value(run.metrics[name]) + format_interval(run.intervals.get(name)) if name in run.metrics else ""
            for run in found.runs
        ]
        rows.append([name, *cells])
    rows.append(["handed back", *(run.chosen for run in found.runs)])
    rows.append(["time", *(_format_total(run) for run in found.runs)])
    return [row for row in rows if any(row[1:])]


def name_of(place: int) -> str:
    """A short name of a run, by its place: a letter, as far as there are some.

    >>> name_of(0), name_of(25), name_of(26)
    ('A', 'Z', '27')
    """
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _head(first: str, found: RunComparison) -> list[str]:
    return [first, *(f"{name_of(place)}: {run.title}" for place, run in enumerate(found.runs))]


def tabulate_differences(pair: Pair) -> TextRows:
    """A row for each metric: by how much it is higher than that of the first run, and whether that is clear."""
    rows = [["metric", "difference", "95% interval", ""]]
    for name, one in pair.differences.items():
        low, high = (f"{end:+.4f}" for end in one.interval)
        rows.append([name, f"{one.value:+.4f}", f"{low} to {high}", one.verdict])
    return rows if len(rows) > 1 else []


def tabulate_options(found: RunComparison) -> TextRows:
    """A row for each option that differs."""
    rows = [[name, *map(_format_option, values)] for name, values in found.options.items()]
    return [_head("option", found), *rows] if rows else []


def tabulate_seconds(found: RunComparison) -> TextRows:
    """A row for each part of the time."""
    parts = dict.fromkeys(part for run in found.runs for part in run.seconds)
    rows = [[part, *(_format_part(run, part) for run in found.runs)] for part in parts]
    return [_head("time", found), *rows] if rows else []


def format_pair(pair: Pair, name: str) -> list[str]:
    """What a pair comes to, in sentences.

    Args:
        pair: The first run, A, and another one.
        name: The short name of that.
    """
    lines = [pair.note]
    if not pair.num_images:
        return lines
    counts = len(pair.first_right), len(pair.other_right)
    if math.isnan(pair.p_value):
        return [*lines, f"{counts[0]:,} images are closer in A, {counts[1]:,} in {name}"]
    chance = f"McNemar's exact test: p = {pair.p_value:.2g}"
    return [*lines, f"{counts[0]:,} images are right in A alone, {counts[1]:,} in {name} alone ({chance})"]


def format_comparison(found: RunComparison) -> str:
    """The comparison in lines, for the terminal."""
    return "\n".join(map(printable, _list_lines(found)))


def _list_lines(found: RunComparison) -> Iterator[str]:
    yield from format_table(tabulate_runs(found)).splitlines()
    for place, pair in enumerate(found.pairs, 1):
        yield from ("", f"{name_of(place)} less A: {pair.title} less {found.runs[0].title}")
        yield from format_pair(pair, name_of(place))
        yield from format_table(tabulate_differences(pair), "<>><").splitlines()
    yield from ("", *(format_table(tabulate_options(found)).splitlines() or ["The configs are equal."]))


def render_comparison(found: RunComparison) -> str:
    """The comparison as one HTML file, with thumbnails of images that one run alone has right."""
    return render_page(
        "lit_ft.evaluation",
        "compare.html",
        title="Comparison of " + ", ".join(run.title for run in found.runs),
        found=found,
        runs=tabulate_runs(found),
        options=tabulate_options(found),
        seconds=tabulate_seconds(found),
        pairs=[
            (pair, name_of(place), tabulate_differences(pair), format_pair(pair, name_of(place)))
            for place, pair in enumerate(found.pairs, 1)
        ],
        max_images=MAX_IMAGES,
        picture=thumbnail,
    )


def _format_total(run: ComparedRun) -> str:
    return format_duration(sum(run.seconds.values())) if run.seconds else ""


def _format_part(run: ComparedRun, part: str) -> str:
    return format_duration(run.seconds[part]) if part in run.seconds else ""


def _format_option(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
