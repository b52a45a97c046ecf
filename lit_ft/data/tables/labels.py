"""Labels of images: the names and order of classes, and the label columns of a table."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lit_ft.data.files.folders import find_file
from lit_ft.data.tables.tables import Table, read_table
from lit_ft.errors import UserError, unknown
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.tasks.task import TaskName

_KEY = "`data.label_columns`"
_MARKS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}

_MISSING = {"nan", "<na>"}  # what numpy and pandas write where a value is missing
_SEPARATORS = "|;,"  # the first that is in any cell stands between labels; where there is none, white space does

# Python would join two texts in a row: what numpy prints of an array of labels has no commas.
_NO_COMMA = re.compile(r"""['"]\s+['"]""")


def check_names(names: Iterable[str], key: str) -> None:
    """Refuses names that are one and the same to a reader, and warns of those that may not be meant.

    Two texts of equal form under NFC differ in nothing but how accents are stored, as macOS stores them otherwise than
    Linux and Windows do; under NFKC in no more than the like of width and ligatures.

    Raises:
        UserError: Two are equal under NFC; ``key`` is the option that they come from.
    """
    canonical: dict[str, str] = {}
    compatible: dict[str, str] = {}
    for name in sorted(names):
        check_same_form(name, [canonical.setdefault(unicodedata.normalize("NFC", name), name)], key)
        if (other := compatible.setdefault(unicodedata.normalize("NFKC", name), name)) != name:
            rank_zero_warn(f"{key}: the classes {other!r} and {name!r} differ in the form of characters alone")
        if name.casefold() in _MISSING:
            rank_zero_warn(
                f"{key}: {name!r} is taken for a class; if it stands for a missing label, remove those images"
            )


def check_same_form(name: str, others: Iterable[str], key: str) -> None:
    """Raises `UserError` for a name that is equal to another under NFC, and yet another text."""
    for other in others:
        if other != name and unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name):
            raise UserError(
                f"{key}: the class {name!r} comes in two forms of Unicode, {other!a} and {name!a}, which look the "
                "same; use one of them"
            )


def class_order(names: Iterable[str]) -> list[str]:
    """Sorts the names of classes, by number where all are whole numbers.

    >>> class_order(["10", "9", "-1"]), class_order(["10", "9", "b"])
    (['-1', '9', '10'], ['10', '9', 'b'])
    """
    names = sorted(names)
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return names


def names_of_folders(given: str, folders: Collection[str], needs_all: bool = True) -> dict[str, str]:
    """The name of the class of each folder, from a file.

    It is a JSON or YAML file with a name for each folder, or a CSV or TSV file with the columns ``folder`` and
    ``class``.

    Args:
        given: The file.
        folders: The folders.
        needs_all: Whether there must be a folder for each name.

    Raises:
        UserError: The file cannot be read, or does not name each folder once.
    """
    key = "`data.class_names_from`"
    path = find_file(given, key)
    names = _read_names(path, key)
    for folder in folders:
        if folder not in names:
            raise unknown("class folder", folder, names, f"{key}: {path}")
    if needs_all and (missing := sorted(set(names) - set(folders))):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{key}: {path} names {missing[0]}{others}, but there is no such class folder; leave it out")
    of_name: dict[str, str] = {}
    for folder, name in names.items():
        if of_name.setdefault(name, folder) != folder:
            raise UserError(f"{key}: {path} gives {of_name[name]} and {folder} one name, {name!r}; tell them apart")
    return names


def _read_names(path: Path, key: str) -> dict[str, str]:
    pairs = _read_pairs(path, key)
    if pairs is None or not all(isinstance(text, str) and text for pair in pairs for text in pair):
        raise UserError(f"{key}: {path} must have one name for each folder, as in {{n01440764: tench}}")
    names: dict[str, str] = {}
    for folder, name in pairs:
        if names.setdefault(folder, name) != name:
            raise UserError(f"{key}: {path} gives {folder} two names, {names[folder]!r} and {name!r}; leave one out")
    return names


def _read_pairs(path: Path, key: str) -> Sequence[tuple[str, Any]] | None:
    """Each folder and its name, as often as they are there, which a dict would not have; None of something else."""
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        table = read_table(path, key)
        return list(zip(table.column("folder", key), table.column("class", key), strict=True))
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=tuple)
            return content if isinstance(content, tuple) else None
        # All that YAML holds as text: a folder may be called `no` or `007`.
        node = yaml.compose(text, yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{key}: {path} cannot be read ({' '.join(str(error).split())})") from error
    return [(folder.value, name.value) for folder, name in node.value] if isinstance(node, yaml.MappingNode) else None


def read_labels(
    table: Table,
    columns: Sequence[str],
    task: TaskName,
    split_of: Sequence[str],
    separator: str | None = None,
    known: Sequence[str] | None = None,
) -> tuple[list[str], Tensor]:
    """Reads the label columns of a table; labels are those of the training images, by the split of each row.

    What stands between the labels in a cell is found out where no separator is given. The classes or labels that are
    ``known`` to a model are those of the training images instead.

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
        labels = _parse_labels(table, cells[0], separator)
    else:
        labels = [[cell] for cell in cells[0]]
        table.refuse([i for i, [cell] in enumerate(labels) if not cell], _KEY, "have no label")
        lists = [i for i, [cell] in enumerate(labels) if is_list(cell)]
        advice = "for several labels an image: `model.task` multilabel"
        table.refuse(lists, _KEY, "have a list of labels", cells[0], advice)
    names = _names(labels, table, split_of) if known is None else _refuse_unknown(labels, table, known)
    number = {name: k for k, name in enumerate(names)}
    if task == "multiclass":
        return names, torch.tensor([number[label] for [label] in labels])
    targets = torch.zeros(len(labels), len(names), dtype=torch.long)
    rows = [i for i, of_row in enumerate(labels) for _ in of_row]
    targets[rows, [number[label] for of_row in labels for label in of_row]] = 1
    return names, targets


def _names(labels: Sequence[Sequence[str]], table: Table, split_of: Sequence[str]) -> list[str]:
    """The labels of the training images, in order."""
    known = {label for of_row, split in zip(labels, split_of, strict=True) if split == "train" for label in of_row}
    check_names({label for of_row in labels for label in of_row}, _KEY)
    strange = [i for i, of_row in enumerate(labels) if not known.issuperset(of_row)]
    first = [next((label for label in of_row if label not in known), "") for of_row in labels] if strange else None
    table.refuse(strange, _KEY, "have a label that no training image has", first, "add some, or leave them out")
    if len(known) < 2:
        found = ", ".join(repr(name) for name in known) or "none"
        raise UserError(f"{_KEY}: two labels are needed to tell apart, but the training images have only {found}")
    return class_order(known)


def _refuse_unknown(labels: Sequence[Sequence[str]], table: Table, known: Sequence[str]) -> list[str]:
    """The labels that a model knows; raises `UserError` for others."""
    strange = [i for i, of_row in enumerate(labels) if not set(known).issuperset(of_row)]
    first = [next((label for label in of_row if label not in known), "") for of_row in labels] if strange else None
    advice = f"it knows {', '.join(map(repr, known[:10]))}" + (f" and {len(known) - 10} more" if known[10:] else "")
    table.refuse(strange, _KEY, "have a label that the model does not know", first, f"{advice}; leave them out")
    return list(known)


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


def _parse_labels(table: Table, cells: Sequence[str], separator: str | None) -> list[list[str]]:
    """The labels in each cell: ``cat|dog``, ``cat, dog``, ``["cat", "dog"]`` or ``['cat', 'dog']``."""
    lists = [_as_list(cell) if cell else [] for cell in cells]
    found = [row for row in lists if row is not None]
    if any(cells) and len(found) == len(lists):
        return found
    if separator is None and any(row is not None for row, cell in zip(lists, cells, strict=True) if cell):
        strange = [i for i, row in enumerate(lists) if row is None]
        table.refuse(strange, _KEY, "are no list of labels, as others are", cells)
    mark = separator or next((mark for mark in _SEPARATORS if any(mark in cell for cell in cells)), None)
    return [[label.strip() for label in cell.split(mark) if label.strip()] for cell in cells]


def is_list(cell: str) -> bool:
    """Whether a cell is a list of texts.

    >>> is_list('["cat", "dog"]'), is_list("['cat']"), is_list("[cat]"), is_list("[1]")
    (True, True, False, False)
    """
    return any(quote in cell for quote in "'\"") and _as_list(cell) is not None


def format_label_cells(
    targets: Tensor, task: TaskName, names: Sequence[str], num_columns: int = 1, separator: str | None = None
) -> Iterator[list[str]]:
    """The cells of the label columns of each image, as `read_labels` reads them likewise.

    Args:
        targets: Classes ``(N,)``, or labels or numbers ``(N, K)``.
        task: The task that they are for.
        names: The classes or labels.
        num_columns: Number of label columns: one of all labels, or one of each.
        separator: What stands between the labels of a cell.
    """
    rows = targets.tolist()
    if task == "multiclass":
        return ([names[row]] for row in rows)
    if task == "regression":
        return ([repr(number) for number in row] for row in rows)  # all digits that it has
    if num_columns > 1:
        return ([str(number) for number in row] for row in rows)
    return ([format_labels(names, row, separator)] for row in rows)


def format_labels(names: Sequence[str], chosen: Sequence[int], separator: str | None) -> str:
    """The cell of an image with those of all labels that are ``chosen``, as `read_labels` reads it likewise."""
    labels = list(compress(names, chosen))
    if any((separator or "|") in name for name in names):  # that were read from lists
        return json.dumps(labels, ensure_ascii=False)
    # At least one |, without which something else would be taken for what stands between labels.
    return (separator or "|").join(labels) + ("|" if separator is None and len(labels) < 2 else "")


def _as_list(cell: str) -> list[str] | None:
    """The labels of a cell that is a list, in JSON or as Python prints one; nothing of another."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        if _NO_COMMA.search(cell):
            return None
        try:
            values = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if not isinstance(values, list) or not all(isinstance(value, str | int) for value in values):
        return None
    return [label for label in (str(value).strip() for value in values) if label]
