"""Label columns of a table: classes, any number of labels, or numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_ft.data.tables.class_names import check_names, class_order
from lit_ft.data.tables.label_lists import is_list, parse_labels
from lit_ft.data.tables.tables import Table
from lit_ft.errors import UserError
from lit_ft.tasks.task import TaskName

_KEY = "`data.label_columns`"
_MARKS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}


def read_labels(
    table: Table, columns: Sequence[str], task: TaskName, split_of: Sequence[str], separator: str | None = None
) -> tuple[list[str], Tensor]:
    """Reads the label columns of a table.

    Args:
        table: The table.
        columns: The names of these columns.
        task: What they are for.
        split_of: The split of each row, as labels are those of the training images.
        separator: What stands between the labels in a cell; when not given, it is found out.

    Returns:
        The names of the classes, labels or numbers, and the targets: int64 ``(N,)`` for multiclass, int64 ``(N, K)`` of
        zeros and ones for multilabel, and float64 ``(N, K)`` for regression.

    Raises:
        UserError: A column or a label is missing, or is not what the task takes.
    """
    cells = [[cell.strip() for cell in table.column(name, _KEY)] for name in columns]
    if task == "regression":
        return list(columns), torch.stack([_numbers(table, of_column) for of_column in cells], dim=1)
    if task == "multilabel" and len(columns) > 1:
        return list(columns), torch.stack([_marks(table, of_column) for of_column in cells], dim=1)
    if task == "multilabel":
        return _labels(table, parse_labels(table, cells[0], _KEY, separator), split_of)
    return _classes(table, cells[0], split_of)


def _classes(table: Table, cells: Sequence[str], split_of: Sequence[str]) -> tuple[list[str], Tensor]:
    table.refuse([i for i, cell in enumerate(cells) if not cell], _KEY, "have no label")
    lists = [i for i, cell in enumerate(cells) if is_list(cell)]
    table.refuse(lists, _KEY, "have a list of labels", cells, "for several labels an image: `model.task` multilabel")
    names = _names([[cell] for cell in cells], table, split_of)
    number = {name: k for k, name in enumerate(names)}
    return names, torch.tensor([number[cell] for cell in cells])


def _labels(table: Table, labels: Sequence[list[str]], split_of: Sequence[str]) -> tuple[list[str], Tensor]:
    names = _names(labels, table, split_of)
    number = {name: k for k, name in enumerate(names)}
    targets = torch.zeros(len(labels), len(names), dtype=torch.long)
    rows = [i for i, of_row in enumerate(labels) for _ in of_row]
    targets[rows, [number[label] for of_row in labels for label in of_row]] = 1
    return names, targets


def _names(labels: Sequence[Sequence[str]], table: Table, split_of: Sequence[str]) -> list[str]:
    """The labels of the training images, in order."""
    known = {label for of_row, split in zip(labels, split_of, strict=True) if split == "train" for label in of_row}
    check_names({label for of_row in labels for label in of_row}, _KEY)
    strange = [i for i, of_row in enumerate(labels) if not known.issuperset(of_row)]
    unknown = [next((label for label in of_row if label not in known), "") for of_row in labels] if strange else None
    table.refuse(strange, _KEY, "have a label that no training image has", unknown, "add some, or leave them out")
    if len(known) < 2:
        found = ", ".join(repr(name) for name in known) or "none"
        raise UserError(f"{_KEY}: two labels are needed to tell apart, but the training images have only {found}")
    return class_order(known)


def _marks(table: Table, cells: Sequence[str]) -> Tensor:
    marks = [_MARKS.get(cell.lower()) for cell in cells]
    table.refuse([i for i, mark in enumerate(marks) if mark is None], _KEY, "have a label other than 0 and 1", cells)
    return torch.tensor(marks)


def _numbers(table: Table, cells: Sequence[str]) -> Tensor:
    numbers = [_number(cell) for cell in cells]
    targets = torch.tensor(numbers, dtype=torch.float64)
    table.refuse((~targets.isfinite()).nonzero().flatten().tolist(), _KEY, "have no number", cells)
    # float64 keeps their digits; but errors are also kept as float32, as by TensorBoard.
    too_large = (targets.abs() > torch.finfo(torch.float32).max).nonzero().flatten().tolist()
    table.refuse(too_large, _KEY, "have a number beyond 3.4e38", cells, "scale the column")
    return targets


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
