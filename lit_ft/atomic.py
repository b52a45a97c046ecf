"""Atomic writes: a file is written beside the one that it then replaces."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lit_ft.errors import refuse_unwritable


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
