"""Folders of data: looking them up, class folders, and files that are not the user's."""

from __future__ import annotations

import os
import re
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

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_TABLES = (".csv", ".tsv", ".parquet")
_ARRAYS = (".npz", ".npy")


def find_folder(given: str, key: str) -> Path:
    """The folder that the option ``key`` names, itself or below LIT_FT_DATA; raises `UserError` where there is none."""
    folder = _find(given, key, Path.is_dir)
    if folder.is_file():
        raise UserError(f"{key}: {folder} is a file, not a folder{_describe_file(folder)}")
    return folder


def find_file(given: str, key: str) -> Path:
    """The file that the option ``key`` names, found likewise."""
    file = _find(given, key, Path.exists)
    if file.is_dir():
        raise UserError(f"{key}: {file} is a folder, not a file")
    return file


def find_path(given: str, key: str) -> Path:
    """The file or folder that the option ``key`` names, found likewise."""
    return _find(given, key, Path.exists)


def _find(given: str, key: str, is_fit: Callable[[Path], bool]) -> Path:
    if not str(given).strip():  # which Python takes for the folder that it is in
        raise UserError(f"{key}: names nothing; give a path")
    path, shared = Path(given).expanduser(), shared_folder()
    try:
        if path.exists():
            return path
        if shared and (shared / path).exists():
            return shared / path
        there = path.parent.iterdir() if path.parent.is_dir() else ()
        beside = [one.name for one in there if not is_ignored(one.name) and is_fit(one)]
    except OSError as error:  # not permitted, or its name is too long
        raise UserError(f"{key}: {path} cannot be read ({error.strerror}); change or move it") from error
    close = nearest(path.name, beside)
    hint = _describe_missing(str(given)) or (f"nearest: {', '.join(close)}" if close else "give another path")
    raise UserError(f"{key}: {path} does not exist; {hint}")


def _describe_missing(given: str) -> str | None:
    """What a path is that is not there, where its spelling tells."""
    if given == "data":
        return "no other folder was given; give that of your photos"
    if "://" in given:
        return "it is an address; fetch what is there, and give its folder"
    if given[0] in "'\"":
        return "the quotation marks are a part of it; give it without, or with the other ones"
    if re.match(r"[A-Za-z]:", given) and os.name != "nt":
        if not re.search(r"[\\/]", given):
            return "the shell has taken its backslashes; quote it, or type / instead"
        there = given[2:].replace("\\", "/").lstrip("/")
        return f"it is a path of Windows, which under WSL is /mnt/{given[0].lower()}/{there}"
    return None


def _describe_file(file: Path) -> str:
    """What to do with a file that is given as a folder of photos."""
    suffix = file.suffix.lower()
    if suffix in _ARCHIVES and not re.search(r"[-._]idx(\d[-._]ubyte)?\.gz$", file.name, re.IGNORECASE):
        return "; unpack it, and give the folder"
    if suffix in _TABLES:
        return f"; for a table of images: `data` ImageTableDataModule `data.table` {file}"
    if suffix in _ARRAYS:
        place = file if suffix == ".npz" else file.parent
        return f"; for arrays: `data` ImageArrayDataModule `data.root` {place}"
    return f"; give the one that it is in, {file.parent}"


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
        if any(name.lower().endswith(_ARRAYS) or "-ubyte" in name for name in files):
            wanted = f"for arrays: `data` ImageArrayDataModule `data.root` {folder}"
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
