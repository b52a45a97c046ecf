"""Lists of images: text files with a path a row."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lit_ft.data.tables.tables import unescape_formula
from lit_ft.data.tables.text_rows import find_separator, open_text, read_numbered_rows
from lit_ft.errors import UserError

LIST_SUFFIXES = (".csv", ".tsv", ".txt")

_COLUMNS = (
    "path", "paths", "file_path", "filepath", "image_path", "img_path", "filename", "file_name", "file", "files",
    "image", "images", "img", "photo", "photos",
)  # fmt: skip
"""What a column of paths is called, the clearest first."""


def read_path_list(file: Path, key: str) -> list[str]:
    """The paths in a list, relative ones from its folder: of its column ``path``, or one like that, or else its first.

    A .txt file has a path a line, whatever is in it. Spaces, quotes and backslashes around or in a path are taken for
    a part of it only where there is such a file.

    Raises:
        UserError: If it cannot be read, has a row without a path, or names no file; ``key`` is what it was given for.
    """
    try:
        rows = _read_rows(file)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{key}: {file} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    column, rows = _find_column(file, key, rows)
    cells = [row[column] if len(row) > column else "" for row in rows]
    if "" in cells:
        raise UserError(f"{key}: {file} has a row without a path, its row {cells.index('') + 1} of {len(cells)}")
    if not cells:
        raise UserError(f"{key}: {file} has no paths of images")
    paths = [_find(file.parent, cell) for cell in cells]
    missing = [path for path in paths if not os.path.exists(path)]
    if strange := next(filter(_is_no_text, missing), None):
        raise UserError(f"{key}: {file} is not in UTF-8, and names no file with {strange!a}; save it in that encoding")
    if len(missing) == len(paths):
        are_here = any(map(os.path.exists, cells))
        what = "move it here, where they start from" if are_here else "they start from its folder, unless they are full"
        raise UserError(f"{key}: {file} names no file that is there, such as {missing[0]}; {what}")
    return paths


def _is_no_text(path: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in path)


def _read_rows(file: Path) -> list[list[str]]:
    """The rows that are not empty. Names of files need not be valid text."""
    if file.suffix.lower() == ".txt":
        with open_text(file, "surrogateescape") as opened:
            return [[line.rstrip("\r\n")] for line in opened if line.strip()]
    separator = find_separator(file, "surrogateescape")
    own = "\t" if file.suffix.lower() == ".tsv" else ","
    rows = [row for _, row in read_numbered_rows(file, own, "surrogateescape") if any(row)]
    if separator == own or os.path.exists(_find(file.parent, rows[0][0])):  # a file that has such a mark in its name
        return rows
    return [row for _, row in read_numbered_rows(file, separator, "surrogateescape") if any(row)]


def _find_column(file: Path, key: str, rows: list[list[str]]) -> tuple[int, list[list[str]]]:
    """The column of the paths, and the rows after those of the names of columns, if there are any."""
    names = [cell.strip().casefold() for cell in rows[0]] if rows else []
    for name in _COLUMNS:
        if name in names:
            return names.index(name), rows[1:]
    if rows[1:] and not Path(rows[0][0]).suffix and not os.path.exists(_find(file.parent, rows[0][0])):
        first = rows[0][0][:200]
        raise UserError(f"{key}: {file} begins with {first!r}, which is no file; call the column of the files path")
    return 0, rows


def _find(folder: Path, cell: str) -> str:
    """The file that a cell names, as it is written or else as it was perhaps meant; as written where there is none."""
    bare = cell.strip()
    unquoted = bare[1:-1] if len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "\"'" else bare
    tried = [unescape_formula(cell), cell, bare, unquoted, unquoted.replace("\\", "/")]
    paths = [str(folder / name) for name in dict.fromkeys(tried)]
    return next(filter(os.path.exists, paths), paths[0])
