"""Whether a folder or table that a test is given has the images of the run, or others, which are then all tested."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_ft.data.files.folders import find_file, find_folder
from lit_ft.data.tables.tables import read_table
from lit_ft.runs import Run

MAIN_OPTIONS = {"ImageFolderDataModule": "root", "ImageTableDataModule": "table"}
"""The option that says where the images are, of each data module that can be tested on others."""

_SOME = 200
"""Photos of a run that are looked for."""


def has_own_images(option: str, given: Mapping[str, Any], kept: Mapping[str, Any], run: Run | None) -> bool:
    """Whether a folder or table is that of a run, or a copy: it has most of its images, and a table few others.

    Args:
        option: One of `MAIN_OPTIONS`.
        given: The options of the data now.
        kept: Those of the run.
        run: The run, if its folder is known.

    Raises:
        UserError: If there is no such folder or table.
    """
    find = find_folder if option == "root" else find_file
    place = find(str(given[option]), f"`data.{option}`")
    known = [kept.get(option) or "", *([run.split_table] if run else [])]
    if os.path.realpath(place) in map(os.path.realpath, known):
        return True
    if run is None or not run.split_table.is_file():
        return False
    table = read_table(run.split_table, "`ckpt_path`", errors="surrogateescape")
    paths = list(next(iter(table.columns.values())))  # the first column, whatever it is called
    known_names = _strip_folder(paths)
    some = list(zip(paths, known_names, strict=True))[:: max(1, len(paths) // _SOME)]
    if option == "root":
        return sum(_is_copy(path, place / name) for path, name in some) > len(some) / 2
    names = _read_names(place, given)
    here = {**dict(zip(_strip_folder(names), names, strict=True)), **dict(zip(names, names, strict=True))}
    found = [here.get(path) or here.get(name) for path, name in some]
    num_copies = sum(own is not None and _is_copy(path, own) for (path, _), own in zip(some, found, strict=True))
    return num_copies * len(paths) > len(some) * max(len(paths), len(names)) / 2


def _is_copy(original: str, other: str | Path) -> bool:
    """Whether a photo of a run is perhaps at another place, too: it is there, and has its size, if that is known."""
    try:
        size = os.path.getsize(other)
    except OSError:
        return False
    return not os.path.isfile(original) or os.path.getsize(original) == size


def _read_names(table: Path, given: Mapping[str, Any]) -> list[str]:
    """The paths of the images of a table, in full; none where it lacks the column, which its data module refuses."""
    cells = read_table(table, "`data.table`").columns.get(given.get("path_column") or "path", ())
    root = given.get("root") or table.parent
    return list(dict.fromkeys(os.path.abspath(os.path.join(root, cell)) for cell in cells))


def _strip_folder(paths: list[str]) -> list[str]:
    """Paths within the folder that all lie in."""
    root = os.path.commonpath(paths) if paths else ""
    return [os.path.relpath(path, root) for path in paths]
