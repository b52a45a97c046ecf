"""Data module of images that a table lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, get_args

import torch

from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.files.folders import find_file, find_folder
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.options import check_choice
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.tables.labels import read_labels
from lit_ft.data.tables.tables import Columns, read_row_splits, read_table, unescape_table, unique_rows
from lit_ft.errors import UserError
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.tasks.task import TaskName


class ImageTableDataModule(PhotoDataModule):
    """Photos that a table lists, one row an image, with what is to be learnt of each: CSV, TSV or Parquet.

    Splits without rows are held out from the training images, stratified where there are classes. The ``split.csv`` of
    a run is such a table, and gives the same split again. An apostrophe before =, +, - or @ keeps
    spreadsheets from running a cell as a formula, and is no part of it but in the column with the paths.

    Args:
        table: The file, which must be given, with a line of column names; a relative one may also lie in the folder
            that the environment variable LIT_FT_DATA names. Commas, semicolons or tabs stand between columns, and its
            text is in UTF-8 or UTF-16; .parquet takes pyarrow.
        root: The folder that the paths start from, where they are not absolute. When not given, that of the table.
        path_column: The column with the path of each image.
        label_columns: For multiclass one column, with any text; the classes are in its order, by number where all are
            whole numbers. For regression columns of numbers. For multilabel several columns of 0 and 1, or one with the
            labels of each image: lists, as in JSON, Python or Parquet, or text with ``label_separator`` in it.
        split_column: The column with train, val (or valid, validation, dev) or test. When not given, that which is
            called split, if there is one.
        group_column: The column with the group of each image, such as the patient; a group is kept in one split.
        task: The task of the labels. When not given, the model's task.
        augment: ``basic`` takes a random part of at least half the area and mirrors half of the images.
        label_separator: Text between the labels of an image. When not given, | if that occurs in the column
            anywhere, else ; or else a comma or else spaces.
        tested_classes: Names of the classes, labels or numbers of a model that is only tested on this table: all rows
            of test, or, where there are none, all rows. ``lit-ft test CHECKPOINT --data.table NEW`` gives it.
        **common: The options of all sets of photos.
    """

    group_key = "`data.group_column`"

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
        tested_classes: list[str] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        if not table:
            raise UserError("`data.table`: is missing; name the CSV, TSV or Parquet file")
        self.task = "multiclass" if task is None else task
        check_choice("task", self.task, list(MAIN_METRIC))
        label_columns = [label_columns] if isinstance(label_columns, str) else list(label_columns)
        _check_labels(self.task, label_columns, label_separator)
        self.table = table
        self.root = root
        self.path_column = path_column
        self.label_columns = label_columns
        self.label_separator = label_separator
        self.tested_classes = tested_classes
        self.split_column = split_column
        self.group_column = group_column
        self.columns = Columns(path_column, tuple(label_columns), split_column or "split", group_column or "group")

    @property
    def class_names(self) -> list[str]:
        """The classes or labels in order, or the columns of numbers."""
        return list(self._rows[0])

    def read_splits(self) -> dict[Split, FileSplit]:
        """Finds the images, and holds out what is not given; to test a model, those to test alone."""
        if self.tested_classes is None:
            return super().read_splits()
        test = self._rows[1]["test"]
        return {"train": test.part(torch.arange(0)), "test": test, "predict": test.indexed()}

    def read_given(self) -> dict[Split, FileSplit]:
        """The rows of each split that has any."""
        return dict(self._rows[1])

    @cached_property
    def _rows(self) -> tuple[list[str], dict[Split, FileSplit]]:
        """The names of the classes, and the rows of each split."""
        file = find_file(self.table, "`data.table`")
        table = unescape_table(read_table(file, "`data.table`"), self.path_column)
        is_tested, others = self.tested_classes is not None, (*self.label_columns, self.path_column)
        split_of = read_row_splits(table, self.split_column, others, is_tested)
        root = find_folder(self.root, "`data.root`") if self.root is not None else file.parent
        names = table.column(self.path_column, "`data.path_column`")
        table.refuse([i for i, name in enumerate(names) if not name], "`data.path_column`", "have no path")
        paths = [os.path.normpath(os.path.join(root, name)) for name in names]
        missing = [i for i, path in enumerate(paths) if not os.path.isfile(path)]
        advice = "fix them, or name the folder that they start from: `data.root`"
        table.refuse(missing, "`data.table`", "name no file", paths, advice)
        class_names, targets = read_labels(
            table, self.label_columns, self.task, split_of, self.label_separator, self.tested_classes
        )
        rows = torch.tensor(unique_rows(table, paths, self.columns))
        groups = None
        if self.group_column is not None and not is_tested:
            cells = table.column(self.group_column, "`data.group_column`")
            table.refuse([i for i, cell in enumerate(cells) if not cell], "`data.group_column`", "have no group")
            groups = self.number_groups(cells)
        images = FileSplit(PackedPaths.pack(root, names), targets, groups)
        by_split = {split: rows[[split_of[i] == split for i in rows.tolist()]] for split in get_args(Split)}
        return class_names, {split: images.part(some) for split, some in by_split.items() if len(some)}


def _check_labels(task: TaskName, columns: Sequence[str], separator: str | None) -> None:
    """Raises `UserError` for label columns, or a separator of labels, that the task does not take."""
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise UserError(f"`data.label_columns`: {twice[0]!r} is given twice; leave one out")
    if not columns or (task == "multiclass" and len(columns) > 1):
        wanted = "one column" if task == "multiclass" else "at least one column"
        raise UserError(
            f"`data.label_columns`: {task} takes {wanted}, got {', '.join(columns) or 'none'}; for several: "
            "`model.task` multilabel or regression"
        )
    if separator is not None and (not separator or task != "multilabel" or columns[1:]):
        wanted = "is for one column of labels, with `model.task` multilabel" if separator else "is empty"
        raise UserError(f"`data.label_separator`: {separator!r} {wanted}; change it or leave it out")
