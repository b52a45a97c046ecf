"""Reading of what `torch.save` wrote: checkpoints and weights, without running what they hold."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


def load(path: str | Path, mmap: bool = False, weights_only: bool = True) -> Any:
    """What a file holds, on the CPU.

    Args:
        path: The file.
        mmap: Whether tensors are mapped from the file, and read when they are used.
        weights_only: Whether tensors and plain values alone are taken. False lets the file run code.

    Raises:
        ValueError: If its records are compressed. torch never writes them so, and a few bytes could unpack to any size.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            packed = [record.filename for record in archive.infolist() if record.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{path}: its records are compressed, which torch.save never does")
    return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mmap)
