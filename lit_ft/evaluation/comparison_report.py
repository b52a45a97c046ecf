"""Reports of a comparison of runs: tables and lines that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lit_ft.console import format_duration, format_table, format_value
from lit_ft.data.pages import render_page, thumbnail
from lit_ft.errors import printable
from lit_ft.evaluation.comparison import ComparedRun, RunComparison
from lit_ft.evaluation.paired_images import SIGNIFICANT, Pair
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
    """A column for each run: its images and classes, its metrics with intervals, what was handed back, and its time."""
    order = [name for metrics in METRICS.values() for name in metrics]
    known = {name for run in found.runs for name in run.metrics}
    names = [name for name in dict.fromkeys(order) if name in known] + sorted(known - set(order))
    rows = [_head("metric", found)]
    rows.append(["images", *("" if run.images is None else f"{len(run.images):,}" for run in found.runs)])
    rows.append(["classes", *(f"{len(run.classes):,}" if run.classes else "" for run in found.runs)])
    for name in names:
        cells = [
            format_value(run.metrics[name]) + format_interval(run.intervals.get(name)) if name in run.metrics else ""
            for run in found.runs
        ]
        rows.append([name, *cells])
    rows.append(["trained on", *(f"{run.sizes['train']:,}" if "train" in run.sizes else "" for run in found.runs)])
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
    """A row for each metric: by how much it is higher than that of the first run."""
    rows = [["metric", "difference", "95% interval"]]
    for name, one in pair.differences.items():
        low, high = (f"{end:+.4f}" for end in one.interval)
        rows.append([name, f"{one.value:+.4f}", f"{low} to {high}"])
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


def format_pair(found: RunComparison, place: int) -> list[str]:
    """What a pair comes to, in sentences, the verdict first.

    Args:
        found: The comparison.
        place: The place of the run that is compared with the first one, A.
    """
    pair, name = found.pairs[place - 1], name_of(place)
    lines = [_format_verdict(pair, name), pair.note] if pair.num_images else [pair.note]
    if other := _describe_classes(found.runs[0].classes, found.runs[place].classes, name):
        easier = "They are compared on images of the classes of both, which are easier to tell for a model of fewer"
        lines.append(f"{other}. {easier} classes" if pair.num_images else other)
    if not pair.num_images:
        return lines
    what = "are closer in A, {:,} in {}" if pair.task == "regression" else "are right in A alone, {:,} in {} alone"
    counts = len(pair.first_right), len(pair.other_right)
    return [*lines, f"{counts[0]:,} images {what.format(counts[1], name)}"]


def _format_verdict(pair: Pair, name: str) -> str:
    """Which run is better, by what, and why an interval may say otherwise."""
    one = pair.differences[pair.main]
    words = "No clear difference" if not pair.is_clear else f"{name} is {pair.verdict} than A"
    has_test = pair.p_value == pair.p_value
    test = f"McNemar's exact test, p = {pair.p_value:.2g}" if has_test else "its interval"
    line = f"{words} in {pair.main}, by {test}"
    if pair.is_clear == one.excludes_zero:
        return line
    what = "excludes" if one.excludes_zero else "contains"
    num = len(pair.first_right) + len(pair.other_right)
    reason = f"but is by bootstrap, which is not exact where few images ({num:,}) differ: the test decides"
    return f"{line}; its interval {what} 0, {reason}"


def _describe_classes(first: Sequence[str], other: Sequence[str], name: str) -> str:
    """Which classes one of two models alone has; nothing where both have the same, or that is not known."""
    alone = {run: [one for one in own if one not in others]
             for run, own, others in (("A", first, other), (name, other, first))}  # fmt: skip
    if not first or not other or not any(alone.values()):
        return ""
    parts = [f"{run} alone has {_format_some(own)}" for run, own in alone.items() if own]
    return f"Their classes differ: {', '.join(parts)}"


def _format_some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if names[5:] else "")


def list_caveats(found: RunComparison) -> list[str]:
    """What must be known before any of the figures is believed."""
    lines = []
    if found.split == "val" and found.untested:
        missing = _format_some(found.untested)
        lines.append(
            f"Compared on validation images, which have chosen the models: there are no test predictions of {missing}"
        )
    elif not found.split:
        lines.append("No split was predicted by each run, so that images are not compared")
    lines += [f"{name_of(place)}: {line}" for place, run in enumerate(found.runs) for line in run.caveats]
    if others := [name_of(place) for place, pair in enumerate(found.pairs, 1) if any(pair.others)]:
        lines.append(
            f"{_format_some(others)}: not measured on the same images as A, so the metrics above are not comparable; "
            "differences are those on the images of both, if there are any"
        )
    return lines


def describe_verdict(found: RunComparison) -> str:
    """How the verdict was found, and what it does not say; nothing where there is none."""
    judged = [pair for pair in found.pairs if pair.num_images]
    if not judged:
        return ""
    by = f"McNemar's exact test at {SIGNIFICANT:.0%}" if judged[0].task == "multiclass" else "its interval"
    return (
        f"The verdict is by {judged[0].main} alone, by {by}. Intervals are by bootstrap over the images of both; of "
        "those of several metrics one may exclude 0 by chance. How much another seed would change is not in them"
    )


def format_comparison(found: RunComparison) -> str:
    """The comparison in lines, for the terminal."""
    return "\n".join(map(printable, _list_lines(found)))


def _list_lines(found: RunComparison) -> Iterator[str]:
    if found.split:
        yield f"Metrics of {found.split}"
    yield from format_table(tabulate_runs(found)).splitlines()
    for line in list_caveats(found):
        yield f"! {line}"
    for place, pair in enumerate(found.pairs, 1):
        yield from ("", f"{name_of(place)} less A: {pair.title} less {found.runs[0].title}")
        yield from format_pair(found, place)
        yield from format_table(tabulate_differences(pair), "<>>").splitlines()
    if verdict := describe_verdict(found):
        yield from ("", verdict)
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
            (pair, name_of(place), tabulate_differences(pair), format_pair(found, place))
            for place, pair in enumerate(found.pairs, 1)
        ],
        caveats=list_caveats(found),
        verdict=describe_verdict(found),
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
