"""Threads that fail on a full disk."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lit_ft.errors import find_full_disk


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Lets no thread print that a disk is full: TensorBoard's raises the same again at the next write to it."""
    hook = threading.excepthook

    def quiet(failed: threading.ExceptHookArgs) -> None:
        if find_full_disk(failed.exc_value) is None:
            hook(failed)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = hook
