"""Cells with any number of labels: ``cat|dog``, ``cat, dog``, ``["cat", "dog"]`` and ``['cat', 'dog']``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from itertools import compress

from lit_ft.data.tables.tables import Table

_SEPARATORS = "|;,"
"""The first that is in any cell stands between labels; where there is none, white space does."""

# Python would join two texts in a row: what numpy prints of an array of labels has no commas.
_NO_COMMA = re.compile(r"""['"]\s+['"]""")


def parse_labels(table: Table, cells: Sequence[str], key: str, separator: str | None) -> list[list[str]]:
    """The labels in each cell.

    Args:
        table: The table, for messages.
        cells: The cells, without space around them.
        key: The option that names their column.
        separator: What stands between labels; when not given, it is found out.

    Raises:
        UserError: Some cells are lists and others are not, or are lists of something else.
    """
    lists = [_as_list(cell) if cell else [] for cell in cells]
    found = [row for row in lists if row is not None]
    if any(cells) and len(found) == len(lists):
        return found
    if separator is None and any(row is not None for row, cell in zip(lists, cells, strict=True) if cell):
        strange = [i for i, row in enumerate(lists) if row is None]
        table.refuse(strange, key, "are no list of labels, as others are", cells)
    mark = separator or next((mark for mark in _SEPARATORS if any(mark in cell for cell in cells)), None)
    return [[label.strip() for label in cell.split(mark) if label.strip()] for cell in cells]


def is_list(cell: str) -> bool:
    """Whether a cell is a list of texts.

    >>> is_list('["cat", "dog"]'), is_list("['cat']"), is_list("[cat]"), is_list("[1]")
    (True, True, False, False)
    """
    return any(quote in cell for quote in "'\"") and _as_list(cell) is not None


def format_labels(names: Sequence[str], chosen: Sequence[int], separator: str | None) -> str:
    """The cell of an image, as `parse_labels` reads it with the same separator.

    Args:
        names: All labels.
        chosen: A 1 for each that the image has, else 0.
        separator: What stands between labels; when not given, something that it finds out.
    """
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
