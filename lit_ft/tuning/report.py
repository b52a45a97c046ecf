"""The trials of a search: a table for the terminal and as a file, and a page with their values."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lit_ft.console import format_duration, format_path, format_table, format_value
from lit_ft.data.pages import render_page
from lit_ft.evaluation.line_chart import draw_lines
from lit_ft.tasks.monitored import Mode
from lit_ft.tuning.study import CHOSEN, CONTINUES, EPOCHS, REASON, RUN

MAX_ROWS = 20
"""Trials that the terminal shows."""

_AT_PRUNING = "the value is that of its last epoch"
"""The note of a pruned trial: complete ones have the value of the model that they hand back."""

_LONGEST = 60
"""Characters of a note that a table shows."""

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialRow:
    """A trial as tables have it.

    Args:
        number: Its number.
        state: What became of it.
        value: The validation metric: of a complete one that of the model that its run hands back, of a pruned one that
            of its last epoch.
        params: What was drawn.
        epochs: Its epochs, as far as they are known.
        seconds: The time that it took.
        run: The folder of its run.
        note: Why it failed, which trial goes on with its run, or of what the value is.
        chosen: The model that its run hands back, such as ``linear probe``, as far as that is known.
    """

    number: int
    state: str
    value: float | None
    params: Mapping[str, Any]
    epochs: int | None
    seconds: float | None
    run: Path | None
    note: str
    chosen: str = ""


def list_rows(trials: Sequence[FrozenTrial]) -> list[TrialRow]:
    """The trials of a study, in their order."""
    following = {one.user_attrs[CONTINUES]: one.number for one in trials if CONTINUES in one.user_attrs}
    return [_make_row(one, following.get(one.number)) for one in trials]


def _make_row(trial: FrozenTrial, next_number: int | None) -> TrialRow:
    noted, is_over = trial.user_attrs, trial.state.is_finished()
    note = _AT_PRUNING if trial.state == TrialState.PRUNED else noted.get(REASON, "")
    duration = trial.duration if next_number is None else None  # else with the time until the kill was found
    return TrialRow(
        number=trial.number,
        state="interrupted" if next_number is not None else _STATES[trial.state],
        value=trial.value if is_over else None,
        params=trial.params,
        epochs=noted.get(EPOCHS),
        seconds=duration.total_seconds() if is_over and duration is not None else None,
        run=Path(noted[RUN]) if noted.get(RUN) else None,
        note=note if next_number is None else f"goes on as trial {next_number}",
        chosen=noted.get(CHOSEN, ""),
    )


def sort_by_value(rows: Sequence[TrialRow], mode: Mode) -> list[TrialRow]:
    """The complete trials with the best first, then those that were pruned likewise, and then all others."""
    sign = 1.0 if mode == "min" else -1.0
    order = ("complete", "pruned")

    def place(row: TrialRow) -> tuple[int, float]:
        if row.value is None or row.state not in order:
            return len(order), row.number
        return order.index(row.state), sign * row.value

    return sorted(rows, key=place)


def format_shared(rows: Sequence[TrialRow], best: TrialRow) -> str | None:
    """What to know where several complete trials have the value of the best; None where it has that alone."""
    same = [row for row in rows if row.state == "complete" and row.value == best.value]
    if len(same) < 2:
        return None
    chosen = {row.chosen for row in same}
    each = f" (each handed back: {best.chosen})" if len(chosen) == 1 and best.chosen else ""
    return (
        f"{len(same)} trials share the best value{each}: the options that were tried made no difference between them, "
        f"and trial {best.number} is just the first"
    )


def format_params(params: Mapping[str, Any]) -> str:
    """What was drawn, in one line.

    >>> format_params({"model.lr": 0.00123456, "optimizer": "SGD", "model.weights": None})
    'model.lr 0.001235, optimizer SGD, model.weights null'
    """
    return ", ".join(f"{name} {_format(value)}" for name, value in params.items())


def _format(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def tabulate(rows: Sequence[TrialRow], monitor: str) -> list[list[str]]:
    """Cells of a table, with a head."""
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    head = ["trial", "state", monitor, *names, "epochs", "time", "chosen", "run", ""]
    cells = [
        [
            str(row.number),
            row.state,
            "" if row.value is None else format_value(row.value),
            *(_format(row.params[name]) if name in row.params else "" for name in names),
            "" if row.epochs is None else str(row.epochs),
            "" if row.seconds is None else format_duration(row.seconds),
            row.chosen,
            "" if row.run is None else row.run.name,
            shorten(row.note, _LONGEST, placeholder=" …"),
        ]
        for row in rows
    ]
    return [head, *cells]


def format_trials(rows: Sequence[TrialRow], monitor: str, mode: Mode) -> str:
    """The best trials for the terminal."""
    ranked = sort_by_value(rows, mode)
    cells = tabulate(ranked[:MAX_ROWS], monitor)
    columns = [">", "<", ">", *[">"] * (len(cells[0]) - 8), ">", ">", "<", "<", "<"]
    rest = f"\nand {len(rows) - MAX_ROWS} more" if len(rows) > MAX_ROWS else ""
    return format_table(cells, columns) + rest


def format_csv(rows: Sequence[TrialRow], monitor: str) -> str:
    """All trials as CSV, in their order."""
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", monitor, *names, "epochs", "seconds", "chosen", "run", "note"])
    for row in rows:
        drawn = (row.params.get(name, "") for name in names)
        values = ["null" if value is None else value for value in drawn]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        run = "" if row.run is None else format_path(row.run)
        writer.writerow([row.number, row.state, row.value, *values, row.epochs, seconds, row.chosen, run, row.note])
    return text.getvalue()


def render_trials(rows: Sequence[TrialRow], title: str, monitor: str, mode: Mode) -> str:
    """A page with the value of each trial, the best one so far, and the table."""
    found = [(row.number, row.value) for row in rows if row.value is not None and math.isfinite(row.value)]
    best: list[tuple[float, float]] = []
    pick = min if mode == "min" else max
    for row in rows:
        if row.state == "complete" and row.value is not None:
            best.append((row.number, pick(row.value, best[-1][1]) if best else row.value))
    chart = draw_lines({monitor: found, "best so far": best}, "trial")
    table = tabulate(sort_by_value(rows, mode), monitor)
    return render_page("lit_ft.tuning", "trials.html", title=title, chart=chart, rows=table)
