"""Folders of data: looking them up, class folders, and files that are not the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lit_ft.assets import shared_folder
from lit_ft.errors import UserError, nearest

# What operating systems, network drives and file managers leave behind, in small letters. What begins with a dot is
# passed over anyway.
_SKIPPED = frozenset({
    "__macosx", "__pycache__", "desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db",
    "@eadir", "@recently-snapshot", "@recycle", "@tmp", "#recycle", "#snapshot",
    "$recycle.bin", "recycler", "system volume information", "found.000", "lost+found",
})  # fmt: skip


def find_folder(given: str, key: str) -> Path:
    """The folder that the option ``key`` names, itself or below LIT_FT_DATA; raises `UserError` where there is none."""
    folder = _find(given, key)
    if folder.is_file():
        raise UserError(f"{key}: {folder} is a file, not a folder")
    return folder


def find_file(given: str, key: str) -> Path:
    """The file that the option ``key`` names, found likewise."""
    file = _find(given, key)
    if file.is_dir():
        raise UserError(f"{key}: {file} is a folder, not a file")
    return file


def _find(given: str, key: str) -> Path:
    if not str(given).strip():  # which Python takes for the folder that it is in
        raise UserError(f"{key}: names nothing; give a path")
    path, shared = Path(given).expanduser(), shared_folder()
    try:
        if path.exists():
            return path
        if shared and (shared / path).exists():
            return shared / path
        beside = [p.name for p in path.parent.iterdir() if not is_ignored(p.name)] if path.parent.is_dir() else []
    except OSError as error:  # not permitted, or its name is too long
        raise UserError(f"{key}: {path} cannot be read ({error.strerror}); change or move it") from error
    close = nearest(path.name, beside)
    hint = f"nearest: {', '.join(close)}" if close else "give another path"
    raise UserError(f"{key}: {path} does not exist; {hint}")


def is_ignored(name: str) -> bool:
    """Whether a file or folder is not the user's: hidden, or left behind by a tool.

    >>> is_ignored("@eaDir"), is_ignored("$RECYCLE.BIN"), is_ignored(".ipynb_checkpoints"), is_ignored("ant")
    (True, True, True, False)
    """
    return name.startswith(".") or name.lower() in _SKIPPED


def rank_kinds(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Kinds of files and their numbers, the most frequent first, and those of one number by name.

    >>> rank_kinds({".xml": 1, ".txt": 2, ".csv": 1})
    [('.txt', 2), ('.csv', 1), ('.xml', 1)]
    """
    return sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))


def subfolders(folder: Path) -> list[Path]:
    """The folders within, by name; raises `UserError` where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:  # which knows what is a folder, without a look at each of a million files
            return sorted(Path(entry.path) for entry in entries if not is_ignored(entry.name) and holds(entry.is_dir))
    except OSError as error:
        raise UserError(f"`data.root`: {folder} cannot be read ({error.strerror}); change or move it") from error


def holds(ask: Callable[[], bool]) -> bool:
    """The answer of an entry of a folder, such as that of ``entry.is_dir``; no for a link that leads nowhere."""
    try:
        return ask()
    except OSError:
        return False


def class_folders(folder: Path) -> list[Path]:
    """The folders of at least two classes; raises `UserError` where there are fewer."""
    classes = subfolders(folder)
    if len(classes) >= 2:
        return classes
    wanted = "put the images of each class into a folder of its own"
    if not classes:
        files = sorted(p.name for p in folder.iterdir() if not is_ignored(p.name))
        there_is = f"only {format_some(files)}" if files else "it is empty"
        raise UserError(f"`data.root`: {folder} has no class folders, {there_is}; {wanted}")
    inner = [p.name for p in subfolders(classes[0])]
    hint = f"if the classes are {format_some(inner)}: `data.root` {classes[0]}" if inner else wanted
    raise UserError(f"`data.root`: {folder} has only one class, {classes[0].name!r}, and two are needed; {hint}")


def format_some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are.

    >>> format_some(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
