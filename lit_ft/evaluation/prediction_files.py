"""Files of predictions: their rows, and where they can be written."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TextIO

import torch

from lit_ft.assets import name_unfinished, replace_atomically
from lit_ft.data.tables.tables import escape_formula

SEPARATORS = {".csv": ",", ".tsv": "\t"}

# Descriptors that this process has open, perhaps on a file: opened again, it would be overwritten from its beginning.
_DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}


def build_rows(
    probabilities: Mapping[int, Sequence[float]],
    names: Sequence[str],
    paths: Sequence[str] | None,
    is_multiclass: bool,
    digits: int,
    flags: Sequence[str] = (),
) -> Iterator[list[str]]:
    """Yields the header, and a row an image in the order of the data.

    Args:
        probabilities: Probabilities ``(K,)`` of each image by its index, or the numbers of a regression, and flags.
        names: The names of the classes.
        paths: Path of each image; without them, images are named by their index.
        is_multiclass: Whether a row has the best class and its probability, rather than a column a class.
        digits: Number of significant digits.
        flags: Names of the flags, which are 0 or 1.
    """
    names = [escape_formula(name) for name in names]
    yield ["path", *(["class", "probability"] if is_multiclass else names), *flags]
    for index in sorted(probabilities):
        path = escape_formula(str(paths[index])) if paths else str(index)
        values, flagged = probabilities[index][: len(names)], probabilities[index][len(names) :]
        cells = [f"{value:.{digits}g}" for value in values]
        if is_multiclass:
            probability, best = torch.tensor(values, dtype=torch.float64).max(dim=0)
            cells = [names[int(best)], f"{float(probability):.{digits}g}"]
        yield [path, *cells, *("yes" if flag else "no" for flag in flagged)]


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows to a file, which is replaced as a whole, or to a pipe or device.

    Raises:
        UserError: If the file cannot be written.
    """
    with nullcontext(path) if is_device(path) else replace_atomically(path) as target, _open(target) as file:
        csv.writer(file, delimiter=SEPARATORS.get(path.suffix.lower(), ",")).writerows(rows)


def check_target(path: Path, overwrite: bool) -> str | None:
    """The reason why predictions cannot be written to a file, pipe or device, or must not be."""
    if is_device(path):  # not opened: the reader of a pipe would see its end
        return None if os.access(path, os.W_OK) else f"{path} cannot be written"
    if os.path.isdir(path):  # unlike that of pathlib, it is false where a name is too long
        return f"{path} is a folder, not a file"
    exists = os.path.exists(path)
    if exists and not overwrite:
        return f"{path} exists; name another file, or to overwrite it: `predictions.overwrite` true"
    if exists and not os.access(path, os.W_OK):
        return f"{path} is read-only; name another file"
    unfinished = name_unfinished(path)
    made = [folder for folder in unfinished.parents if not os.path.exists(folder)]  # unlike pathlib, of any name
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        return f"{path} cannot be written ({error.strerror}); name another file"
    finally:
        with suppress(OSError):  # into which another process may have written by now
            for folder in made:
                folder.rmdir()
    return None


def is_device(path: Path) -> bool:
    """Whether a path is written in place: a pipe, a device, or a descriptor of this process."""
    return _find_descriptor(path) is not None or (os.path.exists(path) and not path.is_file() and not path.is_dir())


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
