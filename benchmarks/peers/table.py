"""Decides what is told of a contest: a table of Markdown, with minimum / median / maximum over the rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from math import isfinite
from statistics import median
from typing import Any

Turn = dict[str, Any]
"""What a contestant was asked, and what it measured."""
FIRST = "lit_ft"

COLUMNS = (
    "seconds", "by lit_ft's", "CPU seconds", "by lit_ft's", "first epoch, s", "a later epoch, s", "start-up, s",
    "peak MB", "accuracy, %",
)  # fmt: skip
HEAD = f"| | {' | '.join(COLUMNS)} |\n{'|---' * (len(COLUMNS) + 1)}|"


def tables(turns: Sequence[Turn]) -> str:
    """A table of each model and kind, and the versions of all."""
    parts = []
    for _, group in groupby(sorted(turns, key=_kind), key=_kind):
        found = list(group)
        names = list(dict.fromkeys(turn["contestant"] for turn in found))
        rows = [row(name, found) for name in names]
        parts.append("\n".join([f"{title(found)}\n\n{HEAD}", *rows]))
    versions = {f"{name} {version}" for turn in turns for name, version in turn["versions"].items()}
    times = sorted(turn["at"] for turn in turns)
    parts.append(f"Commit {turns[0]['commit']}, {times[0]} to {times[-1]}; {', '.join(sorted(versions))}")
    return "\n\n".join(parts)


def title(turns: Sequence[Turn]) -> str:
    """What was done."""
    one = turns[0]
    epochs = f"{one['head_epochs']} epochs of the head, {one['full_epochs']} of all"
    images = "random crops, mirrored" if one["augment"] else "no augmentation"
    rounds = len({turn["round"] for turn in turns})
    network = f"**{one['model']}** ({one['weights']} weights)"
    return f"{network}, {epochs}, {images}, {one['photos']} photos a class, {rounds} rounds"


def row(name: str, turns: Sequence[Turn]) -> str:
    """A contestant's line of the table; a ratio is of two turns of the same round."""
    mine = [turn for turn in turns if turn["contestant"] == name]
    firsts = {turn["round"]: turn for turn in turns if turn["contestant"] == FIRST}
    lasts = [turn["accuracies"][-1] for turn in mine if turn["weights"] == "published"]
    cells = [name]
    for unit in ("seconds", "cpu_seconds"):
        cells.append(spread([turn[unit] for turn in mine], ".1f"))
        ratios = [turn[unit] / firsts[turn["round"]][unit] for turn in mine if turn["round"] in firsts]
        cells.append(spread(ratios, ".2f"))
    cells += [
        spread([turn["ends"][0] for turn in mine], ".2f"),
        spread([b - a for turn in mine for a, b in pairwise(turn["ends"])], ".3f"),
        spread([turn["startup"] for turn in mine], ".1f"),
        spread([turn["peak_mb"] for turn in mine], ",.0f"),
        # Of a network that starts at random it means nothing, and the passes alone have none.
        spread([100 * last for last in lasts if isfinite(last)], ".1f"),
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: Iterable[float], form: str) -> str:
    """Least, middle and greatest."""
    found = list(values)
    if not found:
        return ""
    return " / ".join(f"{value:{form}}" for value in (min(found), median(found), max(found)))


def _kind(turn: Turn) -> tuple[Any, ...]:
    asked = ("model", "weights", "augment", "head_epochs", "full_epochs", "photos", "workers")
    return tuple(turn[key] for key in asked)
