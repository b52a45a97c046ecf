"""Tables of text cells, from CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_ft.errors import UserError, unknown

_SHOWN = 200  # characters of a cell in a message


@dataclass(frozen=True)
class Table:
    """The cells of a table, all of them text.

    Args:
        path: The file.
        columns: The cells of each column, by its name.
        numbers: The number of each row, as a program that shows tables counts: with the column names and empty lines.
    """

    path: Path
    columns: dict[str, Sequence[str]]
    numbers: Sequence[int]

    def column(self, name: str, key: str) -> Sequence[str]:
        """The cells of a column; raises `UserError` where there is none of this name, which the option ``key`` gave."""
        if name not in self.columns:
            raise unknown(f"column of {self.path}", name, self.columns, key)
        return self.columns[name]

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def refuse(
        self, rows: Sequence[int], key: str, what: str, cells: Sequence[str] | None = None, advice: str = "fix them"
    ) -> None:
        """Raises `UserError` where there are any rows of a kind.

        Args:
            rows: Their indices.
            key: The option that the error names.
            what: Their fault, as the rest of a sentence.
            cells: The cell of each row of the table, for the message.
            advice: The remedy.
        """
        if rows:
            first = ", ".join(self.row(i) + (f" {cells[i][:_SHOWN]!r}" if cells else "") for i in rows[:3])
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            count = f"{len(rows)} of {len(self)} rows of {self.path}"
            raise UserError(f"{key}: {count} {what}: {first}{more}; {advice}")

    def row(self, index: int) -> str:
        """What a person would call the row at an index."""
        return f"row {self.numbers[index]}"


def read_table(path: Path, key: str) -> Table:
    """Reads a table, by its suffix: ``.parquet``, ``.tsv`` (or ``.tab``), or else CSV with commas, in UTF-8.

    Args:
        path: The file.
        key: The option that names it, for the message.

    Raises:
        UserError: The file cannot be read, has no rows, or has one with more or fewer fields than columns.
    """
    try:
        table = _read_parquet(path, key) if path.suffix.lower() in (".parquet", ".pq") else _read_text(path, key)
    except MemoryError as error:
        raise UserError(f"{key}: {path} holds more rows than fit into memory") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not in UTF-8; save it in that encoding") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{key}: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not all(table.columns.values()) or not table.columns:
        raise UserError(f"{key}: {path} is empty; it needs a line with the names of its columns, and a row an image")
    return table


def _read_text(path: Path, key: str) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        separator = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
        # A line without anything, as at the end of many files, is no row, but it is counted.
        lines = ((number, line) for number, line in enumerate(csv.reader(file, delimiter=separator), 1) if line)
        names = [name.strip() for name in next(lines, (1, []))[1]]
        if len(names) == 1 and (other := next((mark for mark in ";\t|," if mark in names[0]), None)):
            raise UserError(
                f"{key}: the columns of {path} seem to be separated by {other!r}; a file ending in .tsv must have "
                "tabs, and any other commas"
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{key}: {path} has the column {twice[0]!r} twice; name it otherwise")
        cells: list[list[str]] = [[] for _ in names]
        numbers: list[int] = []
        for number, row in lines:
            if len(row) != len(names):
                raise UserError(
                    f"{key}: {path} has {len(names)} columns, but row {number} has {len(row)}; quote fields with "
                    "commas in them"
                )
            numbers.append(number)
            for column, cell in zip(cells, row, strict=True):
                column.append(cell)
    return Table(path, dict(zip(names, cells, strict=True)), numbers)


def _read_parquet(path: Path, key: str) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UserError(
            f"{key}: {path} needs pyarrow; run: pip install 'lit_ft[parquet]', or save it as CSV"
        ) from error
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise UserError(f"{key}: {path} cannot be read ({' '.join(str(error).split())})") from error
    columns: dict[str, Sequence[str]] = {
        name: [_as_text(cell) for cell in table[name].to_pylist()] for name in table.column_names
    }
    return Table(path, columns, range(1, len(table) + 1))


def _as_text(cell: Any) -> str:
    """A value as a text file would have it: of a list of labels JSON, without those that are missing."""
    if isinstance(cell, list):
        return json.dumps([value for value in cell if value is not None], ensure_ascii=False, default=str)
    return "" if cell is None else str(cell)
