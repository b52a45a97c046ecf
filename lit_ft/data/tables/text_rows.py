"""Rows of text files of any usual encoding and separator, as spreadsheets write them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

MARKS = ";\t|,"
"""What may stand between the cells of a row."""


def find_encoding(path: Path) -> str:
    """UTF-16 where a file begins with its mark, or has a zero beside its first letter; else UTF-8."""
    with path.open("rb") as file:
        head = file.read(2)
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(head) == 2 and 0 in head:
        return "utf-16-le" if head[1] == 0 else "utf-16-be"
    return "utf-8-sig"


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A text file in its own encoding; ``errors`` as of `open`, but of UTF-16, whose names are never those of files."""
    encoding = find_encoding(path)
    with path.open(newline="", encoding=encoding, errors=errors if encoding == "utf-8-sig" else "strict") as file:
        yield file


def find_separator(path: Path, errors: str = "strict") -> str:
    """Tabs where the name of a file ends in .tsv or .tab, else commas, unless its first row has another mark alone."""
    own = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    with open_text(path, errors) as file:
        first = next(filter(None, csv.reader(file, delimiter=own)), [])
    return next((mark for mark in MARKS if mark in first[0]), own) if len(first) == 1 else own


def read_numbered_rows(path: Path, separator: str, errors: str = "strict") -> Iterator[tuple[int, list[str]]]:
    """Each row and its number, from 1; a line without anything, as at the end of many files, is no row, but counted."""
    with open_text(path, errors) as file:
        yield from ((number, row) for number, row in enumerate(csv.reader(file, delimiter=separator), 1) if row)
