"""Decides which files of a folder are images, and which folders are classes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_ft.errors import UserError, nearest

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
_SKIPPED = {"__MACOSX"}


def find_folder(given: str, key: str) -> Path:
    """The folder that an option names, itself or below the folder in the variable LIT_FT_DATA.

    Raises:
        UserError: There is none, or it is a file.
    """
    folder = Path(given).expanduser()
    shared = os.environ.get("LIT_FT_DATA")
    if not folder.exists() and shared and (Path(shared).expanduser() / folder).is_dir():
        return Path(shared).expanduser() / folder
    if folder.is_file():
        raise UserError(f"{key}: {folder} is a file, not a folder")
    if not folder.is_dir():
        beside = [p.name for p in subfolders(folder.parent)] if folder.parent.is_dir() else []
        close = nearest(folder.name, beside)
        raise UserError(f"{key}: {folder} does not exist" + (f"; nearest: {', '.join(close)}" if close else ""))
    return folder


def is_ignored(name: str) -> bool:
    """Whether a file or folder is not the user's: hidden, or left behind by a tool."""
    return name.startswith(".") or name in _SKIPPED


def subfolders(folder: Path) -> list[Path]:
    """The folders within, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_ignored(p.name))


def images_within(folder: Path) -> list[Path]:
    """All image files at any depth, in a fixed order; links are followed."""
    return sorted(_walk(folder, ()))


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    real = folder.resolve()
    if real in above:  # a link to a folder that it is in
        return
    for entry in folder.iterdir():
        if is_ignored(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry


def class_folders(folder: Path) -> list[Path]:
    """The folders of at least two classes.

    Raises:
        UserError: There are fewer.
    """
    classes = subfolders(folder)
    if len(classes) >= 2:
        return classes
    wanted = "put the images of each class into a folder of its own"
    if not classes:
        files = sorted(p.name for p in folder.iterdir() if not is_ignored(p.name))
        there_is = f"only {_listed(files)}" if files else "it is empty"
        raise UserError(f"--data.root: {folder} has no class folders, {there_is}; {wanted}")
    inner = [p.name for p in subfolders(classes[0])]
    hint = f"if the classes are {_listed(inner)}: --data.root {classes[0]}" if inner else wanted
    raise UserError(f"--data.root: {folder} has only one class, {classes[0].name!r}, and two are needed; {hint}")


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
