"""File of predictions: its rows, and how they are written."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch

from lit_ft.data.tables.tables import escape_formula
from lit_ft.runs import name_unfinished, replace_atomically

SEPARATORS = {".csv": ",", ".tsv": "\t"}

# Descriptors that this process has open, perhaps on a file: opened again, it would be overwritten from its beginning.
_DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}


def build_rows(
    probabilities: Mapping[int, Sequence[float]],
    names: Sequence[str],
    paths: Sequence[str] | None,
    is_multiclass: bool,
    digits: int,
) -> Iterator[list[str]]:
    """Yields the header, and a row an image in the order of the data.

    Args:
        probabilities: Probabilities ``(K,)`` of each image by its index, or the numbers of a regression.
        names: The names of the classes.
        paths: Path of each image; without them, images are named by their index.
        is_multiclass: Whether a row has the best class and its probability, rather than a column a class.
        digits: Number of significant digits.
    """
    names = [escape_formula(name) for name in names]
    yield ["path", "class", "probability"] if is_multiclass else ["path", *names]
    for index in sorted(probabilities):
        path = escape_formula(str(paths[index])) if paths else str(index)
        values = probabilities[index]
        if is_multiclass:
            probability, best = torch.tensor(values, dtype=torch.float64).max(dim=0)
            yield [path, names[int(best)], f"{float(probability):.{digits}g}"]
        else:
            yield [path, *(f"{value:.{digits}g}" for value in values)]


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows to a file, which is replaced as a whole, or to a pipe or device.

    Raises:
        UserError: If the file cannot be written.
    """
    separator = SEPARATORS.get(path.suffix.lower(), ",")
    if is_device(path):
        with _open(path) as file:
            csv.writer(file, delimiter=separator).writerows(rows)
        return
    with replace_atomically(path) as unfinished, _open(unfinished) as file:
        csv.writer(file, delimiter=separator).writerows(rows)


def check_target(path: Path, overwrite: bool) -> str | None:
    """The reason why predictions cannot be written to a path, or must not be.

    Args:
        path: The file, pipe or device.
        overwrite: Whether an existing file may be replaced.
    """
    if is_device(path):  # not opened: the reader of a pipe would see its end
        return None if os.access(path, os.W_OK) else f"{path} cannot be written"
    if path.is_dir():
        return f"{path} is a folder, not a file"
    if path.exists() and not overwrite:
        return f"{path} exists; name another file, or to overwrite it: `predictions.overwrite` true"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} is read-only; name another file"
    unfinished = name_unfinished(path)
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        return f"{path} cannot be written ({error.strerror}); name another file"
    return None


def is_device(path: Path) -> bool:
    """Whether a path is written in place: a pipe, a device, or a descriptor of this process."""
    return _find_descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _find_descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path stands for, if any."""
    number = str(path).removeprefix("/dev/fd/")
    return int(number) if number.isdecimal() else _DESCRIPTORS.get(str(path))


def _open(path: Path) -> TextIO:
    descriptor = _find_descriptor(path)
    if descriptor is not None:
        sys.stdout.flush()
    target = path if descriptor is None else os.dup(descriptor)
    # Names of files need not be valid text.
    return open(target, "w", newline="", encoding="utf-8", errors="surrogateescape")
