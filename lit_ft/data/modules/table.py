"""Decides how a table of images is read: which are where, what is to be learnt of each, and in which split it is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.folders import find_file, find_folder
from lit_ft.data.files.formulas import unescape_formula
from lit_ft.data.files.label_columns import read_labels
from lit_ft.data.files.label_lists import format_labels
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.data.files.split_table import Columns
from lit_ft.data.files.tables import Table, read_table
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.errors import UserError, unknown
from lit_ft.tasks.task import MAIN_METRIC, TaskName

SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class ImageTableDataModule(PhotoDataModule):
    """Photos that a table lists, one row an image, with what is to be learnt of each: CSV, TSV or Parquet.

    What has no rows of its own is split off from the training images; where there are classes, each in proportion. The
    ``split.csv`` of a run is such a table, and gives the same split again. An apostrophe before =, +, - or @ keeps
    spreadsheets from running a cell as a formula, and is no part of it but in the column with the paths.

    Args:
        table: The file, which must be given, with a line of column names; a relative one may also lie in the folder
            that the environment variable LIT_FT_DATA names. What ends in .tsv has tabs, and .parquet takes pyarrow.
        root: The folder that the paths start from, where they are not absolute. When not given, that of the table.
        path_column: The column with the path of each image.
        label_columns: For multiclass one column, with any text; the classes are in its order, by number where all are
            whole numbers. For regression columns of numbers. For multilabel several columns of 0 and 1, or one with the
            labels of each image: lists, as in JSON, Python or Parquet, or text with ``label_separator`` in it.
        split_column: The column with train, val (or valid, validation, dev) or test. When not given, that which is
            called split, if there is one.
        group_column: A column that tells which images belong together, such as those of a patient: they are kept in the
            same split.
        task: What the labels are for. When not given, the model's task.
        augment: ``basic`` takes a random part of at least half the area and mirrors half of the images.
        label_separator: What stands between the labels of an image. When not given, | if that occurs in the column
            anywhere, else ; or else a comma or else spaces.
        **common: The options of all sets of photos.
    """

    def __init__(
        self,
        table: str | None = None,
        root: str | None = None,
        path_column: str = "path",
        label_columns: Sequence[str] | str = ("label",),
        split_column: str | None = None,
        group_column: str | None = None,
        task: TaskName | None = None,
        augment: Augment = "basic",
        label_separator: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        if not table:
            raise UserError("`data.table`: is missing; name the CSV, TSV or Parquet file")
        if task is not None and task not in MAIN_METRIC:
            raise unknown("task", task, MAIN_METRIC, "`data.task`")
        self._task: TaskName = task or "multiclass"
        label_columns = [label_columns] if isinstance(label_columns, str) else list(label_columns)
        if twice := [name for name in label_columns if label_columns.count(name) > 1]:
            raise UserError(f"`data.label_columns`: {twice[0]!r} is given twice; leave one out")
        if not label_columns or (self.task == "multiclass" and len(label_columns) > 1):
            wanted = "one column" if self.task == "multiclass" else "at least one column"
            raise UserError(
                f"`data.label_columns`: {self.task} takes {wanted}, got {', '.join(label_columns) or 'none'}; for "
                "several: `model.task` multilabel or regression"
            )
        if label_separator is not None and (not label_separator or self.task != "multilabel" or label_columns[1:]):
            wanted = "is for one column of labels, with `model.task` multilabel" if label_separator else "is empty"
            raise UserError(f"`data.label_separator`: {label_separator!r} {wanted}; change it or leave it out")
        self.table = table
        self.root = root
        self.path_column = path_column
        self.label_columns = label_columns
        self.label_separator = label_separator
        self.split_column = split_column
        self.group_column = group_column
        self._read: tuple[list[str], dict[Split, FileSplit]] | None = None

    @property
    def task(self) -> TaskName:
        """What the labels are for."""
        return self._task

    @property
    def class_names(self) -> list[str]:
        """The classes or labels in order, or the columns of numbers."""
        return list(self._rows()[0])

    @property
    def group_key(self) -> str:
        """The option that tells groups."""
        return "`data.group_column`"

    @property
    def columns(self) -> Columns:
        """The columns by the names that they have in this table."""
        labels = tuple(self.label_columns)
        return Columns(self.path_column, labels, self.split_column or "split", self.group_column or "group")

    def label_cells(self, targets: Tensor) -> Iterator[list[str]]:
        """The cells of the label columns, for each target."""
        if self.task == "multiclass":
            return super().label_cells(targets)
        if self.task == "regression":
            return ([repr(number) for number in row] for row in targets.tolist())  # all digits that it has
        if len(self.label_columns) > 1:
            return ([str(number) for number in row] for row in targets.tolist())
        names = self.class_names
        return ([format_labels(names, row, self.label_separator)] for row in targets.tolist())

    def read_given(self) -> dict[Split, FileSplit]:
        """The rows of each split that has any."""
        return dict(self._rows()[1])

    def _rows(self) -> tuple[list[str], dict[Split, FileSplit]]:
        """The names of the classes, and the rows of each split; read once."""
        if self._read is None:
            table = _unguarded(read_table(find_file(self.table, "`data.table`"), "`data.table`"), self.path_column)
            split_of = self._splits(table)
            root = find_folder(self.root, "`data.root`") if self.root is not None else table.path.parent
            names = table.column(self.path_column, "`data.path_column`")
            table.refuse([i for i, name in enumerate(names) if not name], "`data.path_column`", "have no path")
            paths = [os.path.normpath(os.path.join(root, name)) for name in names]
            table.refuse(
                [i for i, path in enumerate(paths) if not os.path.isfile(path)], "`data.table`",
                "name no file", paths, "fix them, or name the folder that they start from: `data.root`",
            )  # fmt: skip
            class_names, targets = read_labels(table, self.label_columns, self.task, split_of, self.label_separator)
            groups = None
            if self.group_column is not None:
                cells = table.column(self.group_column, "`data.group_column`")
                table.refuse([i for i, cell in enumerate(cells) if not cell], "`data.group_column`", "have no group")
                groups = self.number_groups(cells)
            once = torch.tensor(self._once(table, paths))
            images = FileSplit(PackedPaths.pack(root, names), targets, groups)
            splits: dict[Split, FileSplit] = {}
            for split in ("train", "val", "test"):
                rows = once[[split_of[i] == split for i in once.tolist()]]
                if len(rows):
                    splits[split] = images.part(rows)
            self._read = class_names, splits
        return self._read

    def _splits(self, table: Table) -> list[Split]:
        """The split of each row."""
        name = self.split_column
        if name is None and ("split" not in table.columns or "split" in (*self.label_columns, self.path_column)):
            return ["train"] * len(table)
        cells = [cell.strip().lower() for cell in table.column(name or "split", "`data.split_column`")]
        strange = [i for i, cell in enumerate(cells) if cell not in SPLIT_NAMES]
        table.refuse(strange, "`data.split_column`", "are of an unknown split", cells, "call them train, val and test")
        splits = [SPLIT_NAMES[cell] for cell in cells]
        if "train" not in splits:
            raise UserError(f"`data.split_column`: {table.path} has no rows of train")
        return splits

    def _once(self, table: Table, paths: Sequence[str]) -> list[int]:
        """The first row of each image."""
        first: dict[str, int] = {}
        for i, path in enumerate(paths):
            j = first.setdefault(path, i)
            if j == i:
                continue
            for name in (*self.columns.labels, self.columns.split, self.columns.group):
                cells = table.columns.get(name)
                if cells and cells[i].strip() != cells[j].strip():
                    raise UserError(
                        f"`data.table`: {table.path} has {path} twice, with {name} {cells[j]!r} in {table.row(j)} and "
                        f"{cells[i]!r} in {table.row(i)}; leave one out"
                    )
        if len(first) < len(paths):
            rank_zero_warn(f"{table.path} names {len(paths) - len(first)} images again, which count once")
        return list(first.values())


def _unguarded(table: Table, path_column: str) -> Table:
    """A table without the apostrophes of `write_split`, which puts none before paths."""
    columns = {
        name: cells if name == path_column else [unescape_formula(cell) for cell in cells]
        for name, cells in zip(map(unescape_formula, table.columns), table.columns.values(), strict=True)
    }
    return replace(table, columns=columns)
