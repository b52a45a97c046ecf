"""Decides where data and weights lie on this machine, whether anything may be fetched, and which files are intact."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lit_ft.errors import UserError

OFFLINE = "LIT_FT_OFFLINE"
MANIFEST = "manifest.json"


def data_root(root: str | None = None) -> Path:
    """The folder that holds data sets and weights: what was given, else the variable LIT_FT_DATA, else ``data``."""
    return Path(root or os.environ.get("LIT_FT_DATA") or "data").expanduser()


def weights_folder(root: Path | None = None) -> Path:
    """The folder that ``lit-ft download`` puts weights into."""
    return (root or data_root()) / "weights"


def cache_folder() -> Path:
    """The folder for what can be worked out anew: the variable LIT_FT_CACHE, else ``lit_ft`` in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("LIT_FT_CACHE") or Path(user) / "lit_ft").expanduser()


def is_offline() -> bool:
    """Whether nothing may be fetched: ``--offline``, or the variable LIT_FT_OFFLINE."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def entry_name(folder: Path, path: Path) -> str:
    """What a file is called in the manifest of a folder: its path within, or in full where it lies elsewhere."""
    whole, base = path.absolute(), folder.absolute()
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What ``lit-ft download`` wrote of each file in a folder: ``bytes``, ``sha256`` and, where known, ``url``.

    Raises:
        UserError: If the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        files = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
        for entry in files.values():
            if type(entry["bytes"]) is not int or type(entry["sha256"]) is not str:
                raise TypeError(f"{entry} does not say what a file holds")
        return files
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not a manifest of lit-ft download; delete it and download again") from error


def record(folder: Path, path: Path, url: str | None = None) -> None:
    """Adds a file to the manifest of a folder, or brings its entry up to date."""
    files = read_manifest(folder)
    name = entry_name(folder, path)
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
    url = url or files.get(name, {}).get("url")
    files[name] = {**entry, "url": url} if url else entry
    written = folder / f".{MANIFEST}.{os.getpid()}"
    written.write_text(json.dumps({"files": dict(sorted(files.items()))}, indent=1) + "\n", encoding="utf-8")
    written.replace(folder / MANIFEST)


def is_intact(folder: Path, path: Path) -> bool:
    """Whether a file is as the manifest of a folder says; one that it does not know is taken as it is."""
    entry = read_manifest(folder).get(entry_name(folder, path))
    return entry is None or (path.stat().st_size == entry["bytes"] and checksum(path) == entry["sha256"])
