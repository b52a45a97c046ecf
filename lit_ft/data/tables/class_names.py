"""Names of classes, and their order."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.data.files.folders import find_file
from lit_ft.data.tables.tables import read_table
from lit_ft.errors import UserError, unknown

_KEY = "`data.class_names_from`"

# What numpy and pandas write where a value is missing.
_MISSING = {"nan", "<na>"}


def check_names(names: Iterable[str], key: str) -> None:
    """Refuses names that are one and the same to a reader, and warns of those that may not be meant.

    Two texts of equal form under NFC differ in nothing but how accents are stored, as macOS stores them otherwise than
    Linux and Windows do; under NFKC in no more than the like of width and ligatures.

    Args:
        names: The names of all classes.
        key: The option that they come from.

    Raises:
        UserError: If two are equal under NFC.
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


def names_of_folders(given: str, folders: Collection[str]) -> dict[str, str]:
    """The name of the class of each folder, from a file.

    Args:
        given: A JSON or YAML file with a name for each folder, or a CSV or TSV file with the columns ``folder`` and
            ``class``.
        folders: The names of the class folders.

    Raises:
        UserError: The file cannot be read, or does not name each folder once.
    """
    path = find_file(given, _KEY)
    names = _read(path)
    for folder in folders:
        if folder not in names:
            raise unknown("class folder", folder, names, f"{_KEY}: {path}")
    if missing := sorted(set(names) - set(folders)):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{_KEY}: {path} names {missing[0]}{others}, but there is no such class folder; leave it out")
    of_name: dict[str, str] = {}
    for folder, name in names.items():
        if of_name.setdefault(name, folder) != folder:
            raise UserError(f"{_KEY}: {path} gives {of_name[name]} and {folder} one name, {name!r}; tell them apart")
    return names


def _read(path: Path) -> dict[str, str]:
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        table = read_table(path, _KEY)
        return dict(zip(table.column("folder", _KEY), table.column("class", _KEY), strict=True))
    try:
        text = path.read_text(encoding="utf-8-sig")
        # All that YAML holds as text: a folder may be called `no` or `007`.
        content: Any = json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, yaml.BaseLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{_KEY}: {path} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) and name for name in content.values()):
        raise UserError(f"{_KEY}: {path} must have one name for each folder, as in {{n01440764: tench}}")
    return content
