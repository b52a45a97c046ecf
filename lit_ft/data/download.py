"""Decides how a missing data set is fetched, and what the user reads when that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_ft.errors import UserError


def fetch(dataset: Callable[..., object], folder: Path, **options: Any) -> None:
    """Has torchvision download one of its data sets.

    Args:
        dataset: A class of ``torchvision.datasets``.
        folder: Where its files will lie.
        **options: What the class is made with.

    Raises:
        UserError: The download failed.
    """
    try:
        dataset(download=True, **options)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        reason = " ".join(str(error).split())
        raise UserError(
            f"--data.download: failed ({reason}); fetch the files yourself and put them in {folder}"
        ) from error
