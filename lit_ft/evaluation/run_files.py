"""The files in the folder of a run as its report reads them; each may have been edited, or cut short."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lit_ft.data.tables.tables import unescape_formula
from lit_ft.errors import UserError
from lit_ft.runs import Run, describe_folder_of_runs

Cells = Mapping[str, str]


@contextmanager
def refuse_damaged(path: Path) -> Iterator[None]:
    """Raises what fails over the content of a file, such as text for a number, as a `UserError` that names it."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"{path}: is damaged ({reason}); fix or remove it, or test the run again") from error


def read_config(run: Run) -> dict[str, Any]:
    """The config of a run.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run.folder}: {_describe_other(run)}") from None
    except (OSError, RecursionError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run.config}: cannot be read ({str(error).splitlines()[0]})") from error
    return config if isinstance(config, dict) else {}


def _describe_other(run: Run) -> str:
    """What a path is that has no config of a run."""
    if not run.folder.exists():
        return "does not exist; name the folder of a run"
    return describe_folder_of_runs(run.folder) or f"is not the folder of a run, as it has no {run.config.name}"


def read_metrics(run: Run) -> dict[str, dict[str, Any]]:
    """The entries of the metrics of a run; none where there is no file."""
    found = json.loads(run.metrics.read_text(encoding="utf-8")) if run.metrics.is_file() else {}
    entries = found.items() if isinstance(found, dict) else ()
    return {split: entry for split, entry in entries if isinstance(entry, dict)}


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a table of results, the head first; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:  # spreadsheets add a mark
        return [[unescape_formula(cell) for cell in row] for row in csv.reader(file) if row]


def read_table(path: Path) -> list[Cells]:
    """The rows by the names of their columns; what a row lacks is empty, and what it has too much is left out."""
    head, *rows = read_rows(path) or [[]]
    return [dict(zip(head, row + [""] * len(head), strict=False)) for row in rows]


def is_tested_on_validation(run: Run, metrics: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the test images of a run are its validation images, as there were no others."""
    if split := metrics.get("test", {}).get("split"):
        return bool(split == "val")
    # Metrics of an earlier version do not say so.
    tested, validated = ({row.get("path") for row in read_table(run.result_table("predictions", split))}
                         for split in ("test", "val"))  # fmt: skip
    splits = {row.get("split") for row in read_table(run.split_table)}
    return bool(tested) and (tested == validated or (bool(splits) and splits.isdisjoint({"test", None})))
