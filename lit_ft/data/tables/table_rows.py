"""Rows of a table of images: the split of each row, and rows of the same image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.data.loading.protocols import Split
from lit_ft.data.tables.formulas import unescape_formula
from lit_ft.data.tables.split_table import Columns
from lit_ft.data.tables.tables import Table
from lit_ft.errors import UserError

SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def unescape_table(table: Table, path_column: str) -> Table:
    """A table without the apostrophes of `write_split_table`, which puts none before paths."""
    columns = {
        name: cells if name == path_column else [unescape_formula(cell) for cell in cells]
        for name, cells in zip(map(unescape_formula, table.columns), table.columns.values(), strict=True)
    }
    return replace(table, columns=columns)


def read_row_splits(table: Table, split_column: str | None, others: Sequence[str]) -> list[Split]:
    """The split of each row.

    Args:
        table: The table.
        split_column: The column with the splits; when not given, the one called split, if there is one.
        others: The columns that are for something else.

    Raises:
        UserError: A split is unknown, or there are no rows of train.
    """
    if split_column is None and ("split" not in table.columns or "split" in others):
        return ["train"] * len(table)
    cells = [cell.strip().lower() for cell in table.column(split_column or "split", "`data.split_column`")]
    unknown = [i for i, cell in enumerate(cells) if cell not in SPLIT_NAMES]
    table.refuse(unknown, "`data.split_column`", "are of an unknown split", cells, "call them train, val and test")
    splits = [SPLIT_NAMES[cell] for cell in cells]
    if "train" not in splits:
        raise UserError(f"`data.split_column`: {table.path} has no rows of train")
    return splits


def unique_rows(table: Table, paths: Sequence[str], columns: Columns) -> list[int]:
    """The first row of each image.

    Args:
        table: The table.
        paths: Path of the image of each row.
        columns: The names of the columns that rows of the same image must agree on.

    Raises:
        UserError: Two rows of the same image differ.
    """
    first: dict[str, int] = {}
    for i, path in enumerate(paths):
        j = first.setdefault(path, i)
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
