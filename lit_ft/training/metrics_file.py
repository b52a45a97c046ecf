"""The metrics of a run by split, with what they are of, in ``metrics.json``; and what a fit makes out of date."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lit_ft.assets import lock_beside, replace_atomically
from lit_ft.console import dump_json, format_path, rank_zero_print
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import RESULT_TABLES, Run
from lit_ft.training.result_names import name_checkpoint


def write_metrics(run: Run, split: str, metrics: Mapping[str, Any], checkpoint: str | Path | None) -> None:
    """Sets the entry of a split in the metrics of a run; those of other splits stay. A damaged file is replaced.

    The tables of the entry before are removed, as they may be of another model or other images. The checkpoint is kept
    by its path from the folder of the run. A number that is not finite becomes null.
    """
    remove_tables(run, split)
    with change_entries(run) as entries:
        set_metrics(run, entries, split, metrics, checkpoint)


def set_metrics(
    run: Run, entries: dict[str, Any], split: str, metrics: Mapping[str, Any], checkpoint: str | Path | None
) -> None:
    """Sets the entry of a split among those of a run, as `write_metrics` does."""
    entries[split] = {"checkpoint": name_checkpoint(run, checkpoint) if checkpoint else None, **metrics}


def forget_results(run: Run) -> None:
    """Removes the metrics of a run, their tables and the report, which a further fit would leave of another model."""
    known = read_entries(run.metrics) if run.metrics.is_file() else {}
    for name in {"val", "test", *known}:
        if name.startswith(("val", "test")):
            remove_tables(run, name)
    with _lock_metrics(run) if known else nullcontext():
        run.metrics.unlink(missing_ok=True)
    run.report.unlink(missing_ok=True)
    if known:
        rank_zero_print(f"Removed  {format_path(run.metrics)} with its tables and report, which are of an earlier fit")


def remove_tables(run: Run, name: str) -> None:
    """Removes the tables of results of a name."""
    for kind in RESULT_TABLES:
        run.result_table(kind, name).unlink(missing_ok=True)


def write_selection(
    run: Run, chosen: str, monitor: str, candidates: Mapping[str, Mapping[str, float]] | None = None
) -> None:
    """Writes which model was handed back, by which metric of validation, and the metrics of all that could have been.

    Args:
        run: The run.
        chosen: The name of the model.
        monitor: The metric.
        candidates: The validation metrics of each candidate by its name, where there were several.
    """
    facts = {"split": "val", "monitor": monitor, "chosen": chosen}
    with change_entries(run) as entries:
        entries["selection"] = {**facts, **({"candidates": dict(candidates)} if candidates else {})}


def write_refit(run: Run, facts: Mapping[str, float], checkpoint: str | Path) -> None:
    """Writes of what a refit was, and that what was measured is of the model before it, which has no checkpoint now."""
    with change_entries(run) as entries:
        entries["refit"] = {"checkpoint": name_checkpoint(run, checkpoint), **facts}
        for split in {"val", "test"} & entries.keys():
            _update(entries, split, {"checkpoint": None, "is_before_refit": True})


def write_run_facts(run: Run, facts: Mapping[str, Any]) -> None:
    """Writes what a fit took, and on what it ran."""
    with change_entries(run) as entries:
        entries["run"] = facts


def write_calibration(run: Run, facts: Mapping[str, float | None]) -> None:
    """Writes how the model that is handed back was calibrated."""
    with change_entries(run) as entries:
        entries["calibration"] = facts


def write_intervals(run: Run, split: str, intervals: Mapping[str, Sequence[float]]) -> None:
    """Adds the lower and the upper end of an interval for each metric to the entry of a split."""
    update_metrics(run, split, {"intervals": dict(intervals)})


def update_metrics(run: Run, split: str, changes: Mapping[str, Any]) -> None:
    """Changes some of the entry of a split."""
    with change_entries(run) as entries:
        _update(entries, split, changes)


def read_entries(path: Path) -> dict[str, Any]:
    """The metrics of a run by name; none where there is no file, and with a warning where it is damaged."""
    try:
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError:
        known = None
    if isinstance(known, dict):
        return known
    rank_zero_warn(f"{path}: damaged; replaced by the metrics of this command alone")
    return {}


@contextmanager
def change_entries(run: Run) -> Iterator[dict[str, Any]]:
    """Gives the metrics of a run by name, to change, and writes them then.

    Other processes that would change them, such as a test of other images at the same time, wait until that is done.
    """
    with _lock_metrics(run), replace_atomically(run.metrics) as unfinished:
        entries = read_entries(run.metrics)
        yield entries
        unfinished.write_text(dump_json(entries, indent=2), encoding="utf-8")


@contextmanager
def _lock_metrics(run: Run) -> Iterator[None]:
    """Holds the metrics of a run for this process, as far as their file system has locks."""
    lock = lock_beside(run.metrics)
    with suppress(OSError, NotImplementedError):  # a folder that cannot be written is refused as the file is
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _update(entries: dict[str, Any], split: str, changes: Mapping[str, Any]) -> None:
    known = entries.get(split)
    entries[split] = {**(known if isinstance(known, dict) else {}), **changes}
