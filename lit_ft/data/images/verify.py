"""Verification of image files, each read once until it changes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_ft.data.files.derived_cache import file_stamp_number, load_derived, match_layout, store_derived
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.data.images.decode import decode, why_unread
from lit_ft.data.loading.workers import sweep
from lit_ft.errors import UserError


def problem_or_pixels(path: Path) -> str | Tensor:
    """Why an image cannot be read, in a line, or its pixels, uint8 ``(3, H, W)``, as training gets them."""
    try:
        return decode(path)
    except UserError as error:
        cause = error.__cause__
        return why_unread(path, cause if isinstance(cause, Exception) else error)


def problem(path: Path) -> str:
    """Why an image cannot be read, in a line, or nothing."""
    found = problem_or_pixels(path)
    return found if isinstance(found, str) else ""


def find_unreadable(paths: PackedPaths) -> dict[int, str]:
    """The rows of the files that cannot be read, and why; files that are not there are among them.

    What was found to be readable before, and has not changed, is not read again. What was not is: a permission, a
    library or a limit may have been the reason.
    """
    if not len(paths):
        return {}
    key = os.path.abspath(paths.root)
    stamps = np.fromiter(map(_stamp, paths.absolute()), np.int64, len(paths))
    kept = load_derived("verified", key)
    is_ours = kept is not None and match_layout(kept[0], {"good": (torch.int64, 1)})
    good = kept[0]["good"].numpy() if kept and is_ours else np.zeros(0, np.int64)
    unknown = np.flatnonzero(~np.isin(stamps, good))
    if not len(unknown):
        return {}
    reasons = list(sweep(paths.part(torch.from_numpy(unknown)), problem, "reading each image once"))
    fine = stamps[unknown[[not why for why in reasons]]]
    if len(fine):
        store_derived("verified", key, ({"good": torch.from_numpy(np.union1d(good, fine))}, {}))
    return {int(row): why for row, why in zip(unknown, reasons, strict=True) if why}


def _stamp(path: str) -> int:
    """A number that changes when a file does; 0 where there is none."""
    try:
        return file_stamp_number(path)
    except OSError:
        return 0
