"""Decides how a missing data set is fetched, and what the user reads when that fails."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from http.client import HTTPException
from pathlib import Path
from typing import Any

from lit_ft.assets import is_offline
from lit_ft.errors import UserError


def fetch(dataset: Callable[..., object], folder: Path, **options: Any) -> None:
    """Has torchvision download one of its data sets.

    Args:
        dataset: A class of ``torchvision.datasets``.
        folder: Where its files will lie.
        **options: What the class is made with.

    Raises:
        UserError: The download failed, or nothing may be fetched.
    """
    if is_offline():
        raise UserError(f"`offline`: files are missing in {folder}; fetch them elsewhere with lit-ft download")
    try:
        # Bars are for people; elsewhere they would surround the one line after a failure.
        with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            dataset(download=True, **options)
    # URLError is an OSError; a wrong checksum is a RuntimeError
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"`data.download`: failed ({reason}); fetch the files yourself and put them in {folder}"
        ) from error
