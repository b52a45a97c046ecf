"""Files of `torch.save`, read without running what they hold, and the plain values that such a file may have."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError


def load(path: str | Path, mmap: bool = False, weights_only: bool = True) -> Any:
    """What a file holds, on the CPU.

    Args:
        path: The file.
        mmap: Whether tensors are mapped from the file, and read when they are used.
        weights_only: Whether tensors and plain values alone are taken. False lets the file run code.

    Raises:
        ValueError: If its records are compressed. torch never writes them so, and a few bytes could unpack to any size.
            Or if it is a damaged ``.safetensors`` file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_packed = any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist())
        if is_packed:
            raise ValueError(f"{path}: its records are compressed, which torch.save never does")
    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mmap)
    except SafetensorError as error:  # of a file of that suffix, which torch reads, too
        raise ValueError(f"{path}: {error}") from error


def plain(value: Any) -> Any:
    """A value as YAML has it, and as a checkpoint may that loads with ``weights_only=True``.

    Dataclasses are dicts, tuples lists, numpy's numbers Python's, and functions, classes and paths text.

    >>> plain({"size": (32, np.float64(0.5)), "at": PurePath("a/b")})
    {'size': [32, 0.5], 'at': 'a/b'}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.generic, Enum)):
        return plain(value.item() if isinstance(value, np.generic) else value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (FunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def is_plain(value: Any) -> bool:
    """Whether a value is of plain types alone."""
    if isinstance(value, (list, dict)):
        return all(map(is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or type(value) in (bool, int, float, str)


def is_storable(value: Any) -> bool:
    """Whether a checkpoint that loads with ``weights_only=True`` gives a value back: a tensor, or as `plain` makes it.

    >>> is_storable([1, {"a": torch.zeros(2)}]), is_storable(np.zeros(2)), is_storable(torch.nn.ReLU)
    (True, False, False)
    """
    if is_dataclass(value) and not isinstance(value, type):
        return is_storable(asdict(value))
    if isinstance(value, (Mapping, list, tuple)):
        return all(map(is_storable, value.values() if isinstance(value, Mapping) else value))
    known = (torch.Tensor, torch.dtype, torch.device, np.generic, Enum, PurePath)
    return is_plain(value) or isinstance(value, known)
