"""Tables of images: text cells from CSV, TSV or Parquet, the split of each row, and the ``split.csv`` of a run."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Split
from lit_ft.data.tables.text_rows import find_separator, read_numbered_rows
from lit_ft.errors import UserError, unknown
from lit_ft.rank_zero import rank_zero_warn

# Also after apostrophes, so that an escaped cell differs from one that began with an apostrophe. Those of full width
# count as the others in some languages' editions.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The cells of a table, all of them text, and the number of each row.

    Rows are counted as programs that show tables do: with the column names and empty lines.
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
        """Raises `UserError` of the option ``key`` where there are any ``rows`` with a fault, and shows their cells."""
        if rows:
            first = ", ".join(self.row(i) + (f" {cells[i][:200]!r}" if cells else "") for i in rows[:3])
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
            count = f"{len(rows)} of {len(self)} rows of {self.path}"
            raise UserError(f"{key}: {count} {what}: {first}{more}; {advice}")

    def row(self, index: int) -> str:
        """What a person would call the row at an index."""
        return f"row {self.numbers[index]}"


def read_table(path: Path, key: str, errors: str = "strict") -> Table:
    """Reads a table, by its suffix: ``.parquet``, or else text in UTF-8 or UTF-16; see `find_separator`.

    Args:
        path: The file.
        key: The option that it is given for.
        errors: What is done with text that is not in UTF-8, as of `open`.

    Raises:
        UserError: The file cannot be read, has no rows, or has one with more or fewer fields than columns.
    """
    try:
        is_parquet = path.suffix.lower() in (".parquet", ".pq")
        table = _read_parquet(path, key) if is_parquet else _read_text(path, key, errors)
    except MemoryError as error:
        raise UserError(f"{key}: {path} holds more rows than fit into memory") from error
    except UnicodeError as error:
        raise UserError(f"{key}: {path} is not in UTF-8; save it in that encoding") from error
    except (OSError, csv.Error) as error:
        raise UserError(f"{key}: {path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not all(table.columns.values()) or not table.columns:
        raise UserError(f"{key}: {path} is empty; it needs a line with the names of its columns, and a row an image")
    return table


def _read_text(path: Path, key: str, errors: str) -> Table:
    separator = find_separator(path, errors)
    lines = read_numbered_rows(path, separator, errors)
    names = [name.strip() for name in next(lines, (1, []))[1]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{key}: {path} has the column {twice[0]!r} twice; name it otherwise")
    cells: list[list[str]] = [[] for _ in names]
    numbers: list[int] = []
    for number, row in lines:
        if len(row) != len(names):
            mark = {",": "commas", ";": "semicolons", "\t": "tabs"}.get(separator, separator)
            raise UserError(
                f"{key}: {path} has {len(names)} columns, but row {number} has {len(row)}; quote fields with {mark} in "
                "them"
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


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a table of images; no two splits may share a group."""

    path: str = "path"
    labels: tuple[str, ...] = ("label",)
    split: str = "split"
    group: str = "group"


def unescape_table(table: Table, path_column: str) -> Table:
    """A table without the apostrophes of `write_split_table`, which puts none before paths."""
    columns = {
        name: cells if name == path_column else [unescape_formula(cell) for cell in cells]
        for name, cells in zip(map(unescape_formula, table.columns), table.columns.values(), strict=True)
    }
    return replace(table, columns=columns)


def read_row_splits(
    table: Table, split_column: str | None, others: Sequence[str], is_tested: bool = False
) -> list[Split]:
    """The split of each row, by a column, or else the one called split, if there is one that is not among ``others``.

    Where a model ``is_tested`` on the table, all rows are of test, unless some are by that column.

    Raises:
        UserError: A split is unknown, or there are no rows of train.
    """
    if split_column is None and ("split" not in table.columns or "split" in others):
        return ["test" if is_tested else "train"] * len(table)
    cells = [cell.strip().lower() for cell in table.column(split_column or "split", "`data.split_column`")]
    unknown = [i for i, cell in enumerate(cells) if cell not in _SPLIT_NAMES]
    table.refuse(unknown, "`data.split_column`", "are of an unknown split", cells, "call them train, val and test")
    splits = [_SPLIT_NAMES[cell] for cell in cells]
    if is_tested and "test" not in splits:
        return ["test"] * len(table)
    if is_tested and (rest := len(splits) - splits.count("test")):
        rank_zero_warn(f"{table.path}: {rest:,} of {len(splits):,} rows are not tested, as their split is not test")
    elif not is_tested and "train" not in splits:
        raise UserError(f"`data.split_column`: {table.path} has no rows of train")
    return splits


def unique_rows(table: Table, paths: Sequence[str], columns: Columns) -> list[int]:
    """The first row of each image; raises `UserError` where two rows of the same of the ``paths`` differ."""
    first: dict[str, int] = {}
    for i, path in enumerate(paths):
        j = first.setdefault(os.path.abspath(path), i)  # a row may have it in full, and another from here
        if j == i:
            continue
        for name in (*columns.labels, columns.split, columns.group):
            cells = table.columns.get(name)
            if cells and cells[i].strip() != cells[j].strip():
                raise UserError(
                    f"`data.table`: {table.path} has {path} twice, with {name} {cells[j]!r} in {table.row(j)} and "
                    f"{cells[i]!r} in {table.row(i)}; leave one out"
                )
    if len(first) < len(paths):
        rank_zero_warn(f"{table.path} names {len(paths) - len(first)} images again, which count once")
    return list(first.values())


def write_split_table(
    file: Path,
    parts: Iterable[tuple[Split, FileSplit]],
    columns: Columns,
    label_cells: Callable[[Tensor], Iterable[Sequence[str]]],
    group_names: Sequence[str] = (),
    notes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Writes a row for each image, as `ImageTableDataModule` reads it; ``label_cells`` gives those of targets.

    Cells that a spreadsheet would run as a formula are escaped, but not the paths: these are absolute. ``notes`` are
    further columns, which end where no more rows have any.
    """
    # Names of files need not be valid text.
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        header = [columns.path, *columns.labels, columns.split, *([columns.group] if group_names else [])]
        writer.writerow(map(escape_formula, [*header, *notes]))
        noted = chain(zip(*notes.values(), strict=True), repeat([""] * len(notes)))
        for split, images in parts:
            numbers = images.groups.tolist() if images.groups is not None else [0] * len(images)
            rows = zip(images.paths.absolute(), label_cells(images.targets), numbers, strict=True)
            for (path, labels, number), further in zip(rows, noted, strict=False):
                cells = [*labels, split, *([group_names[number]] if group_names else []), *further]
                writer.writerow([path, *map(escape_formula, cells)])


def escape_formula(cell: str) -> str:
    """A cell with an apostrophe before it, where a spreadsheet would run it as a formula; numbers stay.

    >>> escape_formula("=1+2"), escape_formula("'=1+2"), escape_formula("-1"), escape_formula("ant")
    ("'=1+2", "''=1+2", '-1', 'ant')
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def unescape_formula(cell: str) -> str:
    """The cell that `escape_formula` made another of.

    >>> unescape_formula("'=1+2"), unescape_formula("''=1+2"), unescape_formula("'ant")
    ('=1+2', "'=1+2", "'ant")
    """
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell
