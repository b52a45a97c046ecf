"""Memory that a process keeps when it is freed."""

from __future__ import annotations

import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Lets the process keep memory that it frees, which the system would give it anew page by page, and zero each.

    It is done where memory comes from glibc, and the user has set none of its variables for that.
    """
    chosen = os.environ.keys() & {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    if sys.platform != "linux" or chosen:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX of malloc.h: large blocks, too, come from the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: whose end is not given back
