"""Files on this machine: folders of data, weights and caches, atomic writes, downloads, and a manifest of checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_ft.errors import UserError, refuse_unwritable

if TYPE_CHECKING:
    from filelock import BaseFileLock

OFFLINE = "LIT_FT_OFFLINE"
MANIFEST = "manifest.json"


def shared_folder() -> Path | None:
    """The folder of data sets and weights in the variable LIT_FT_DATA, if that is set."""
    return Path(given).expanduser() if (given := os.environ.get("LIT_FT_DATA")) else None


def data_root(root: str | None = None) -> Path:
    """The folder of data sets and weights: the one that is given, else that in LIT_FT_DATA, else ``data``."""
    return Path(root).expanduser() if root else shared_folder() or Path("data")


def weights_folder(root: Path | None = None) -> Path:
    """The folder that ``lit-ft download`` puts weights into."""
    return (root or data_root()) / "weights"


def cache_folder() -> Path:
    """The folder of what can be derived again: the variable LIT_FT_CACHE, else ``lit_ft`` in the user's cache."""
    user = os.environ.get("XDG_CACHE_HOME")
    given = os.environ.get("LIT_FT_CACHE") or (user and f"{user}/lit_ft")
    folder = Path(given or "~/.cache/lit_ft").expanduser()
    if given or folder.is_dir():  # earlier releases have put it there on every system
        return folder
    from platformdirs import user_cache_path  # here, as the list of commands does without

    return user_cache_path("lit_ft", appauthor=False)


def is_offline() -> bool:
    """Whether nothing may be fetched: ``--offline``, or the variable LIT_FT_OFFLINE."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def random_part() -> str:
    """The part of a name that no other process has, be it of the same number on another node that shares the folder."""
    return secrets.token_hex(8)


def name_unfinished(path: Path) -> Path:
    """A new name beside a file, or beside the one that it links to, for what replaces that once it is complete."""
    target = path.resolve()
    return target.with_name(f".{target.name}.{random_part()}")


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Gives the path of a file to write, which then replaces the one that is there, or that it links to, whole or not.

    Raises:
        UserError: If it cannot be written.
    """
    unfinished = name_unfinished(path)
    try:
        with refuse_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            unfinished.replace(path.resolve())
    finally:
        with suppress(OSError):
            unfinished.unlink()


def lock_beside(path: Path) -> BaseFileLock:
    """The lock of a file, for processes that would change it at once; one that is killed loses it.

    Raises:
        OSError: When it is taken, if it cannot be written.
        NotImplementedError: When it is taken, if the file system has no locks.
    """
    from filelock import FileLock  # here, as the list of commands does without

    # A file of its own, which stays: a file that is locked cannot be replaced on Windows. Others may lock it, too.
    return FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)


def download_dataset(dataset: Callable[..., object], folder: Path, **options: Any) -> None:
    """Downloads a class of ``torchvision.datasets``, whose arguments are the options, into a folder.

    Raises:
        UserError: The download failed, or nothing may be fetched.
    """
    from http.client import HTTPException  # here and not above, as `lit-ft --help` imports this file

    if is_offline():
        raise UserError(f"`offline`: files are missing in {folder}; fetch them elsewhere with lit-ft download")
    try:
        # Bars are for people; elsewhere they would surround the one line after a failure.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            dataset(download=True, **options)
    # URLError is an OSError; a wrong checksum is a RuntimeError
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        advice = f"fetch the files yourself and put them in {folder}"
        raise UserError(f"`data.download`: failed ({reason}); {advice}") from error


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def entry_name(folder: Path, path: Path) -> str:
    """Name of a file in the manifest of a folder: its path within, or in full where it is elsewhere."""
    whole, base = path.absolute(), folder.absolute()
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifest of a folder that ``lit-ft download`` wrote: ``bytes``, ``sha256`` and perhaps ``url`` of each file."""
    path = folder / MANIFEST
    try:
        files = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
        for entry in files.values():
            if type(entry["bytes"]) is not int or type(entry["sha256"]) is not str:
                raise TypeError(f"{entry} is no entry of a file")
        return files
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not a manifest of lit-ft download; delete it and download again") from error


def record(folder: Path, path: Path, url: str | None = None) -> None:
    """Adds a file to the manifest of a folder, or brings its entry up to date.

    Raises:
        UserError: If the manifest is damaged, or cannot be written.
    """
    name, manifest = entry_name(folder, path), folder / MANIFEST
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
    try:
        # Else what another process writes after this one has read would be lost.
        with refuse_unwritable(manifest), lock_beside(manifest), replace_atomically(manifest) as unfinished:
            files = read_manifest(folder)
            url = url or files.get(name, {}).get("url")
            files[name] = {**entry, "url": url} if url else entry
            content = json.dumps({"files": dict(sorted(files.items()))}, indent=1)
            unfinished.write_text(content + "\n", encoding="utf-8")
    except NotImplementedError as error:
        raise UserError(f"{manifest}: cannot be locked by its file system; name a folder on another one") from error


def is_intact(folder: Path, path: Path) -> bool:
    """Whether a file is as in the manifest of a folder; a file that is not in it counts as intact."""
    entry = read_manifest(folder).get(entry_name(folder, path))
    return entry is None or (path.stat().st_size == entry["bytes"] and checksum(path) == entry["sha256"])
