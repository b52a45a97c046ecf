"""Arrays with a row for each image, cached between runs: written part by part, and never all in memory."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from lit_ft.assets import cache_folder, name_unfinished
from lit_ft.data.files.derived_cache import Derived, load_derived, place_derived, warn_unwritable

_FACTS_ROOM = 1024
"""Bytes that are kept free for the facts, which are known last and lie first."""

_ABANDONED_SECONDS = 3600

_IN_MEMORY = 64 << 20
"""Bytes up to which arrays are joined in memory."""


class DerivedRows:
    """An entry of the derived cache, of float32 arrays ``(N, ...)``, that is written part by part.

    As a context it removes what is not finished. Where the folder cannot be written, a warning says so, and the arrays
    are kept in memory.

    Args:
        name: Kind of the entry.
        key: Source of the entry.
        num_rows: N.
    """

    def __init__(self, name: str, key: str, num_rows: int) -> None:
        self._entry = name, key
        self._num_rows = num_rows
        self._path = place_derived(name, key)
        self._unfinished = name_unfinished(self._path)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._room = 0  # bytes of the header, and before it
        self._file: IO[bytes] | None = None
        self._arrays: dict[str, Tensor] = {}  # where there can be no file

    def __enter__(self) -> DerivedRows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            with suppress(OSError):  # it is finished
                self._unfinished.unlink()

    def write(self, start: int, parts: Mapping[str, Tensor]) -> None:
        """Writes the rows of each array from ``start`` on; the first call must have all arrays, as it reserves space.

        Raises:
            OSError: The disk fails; a full one is found by the first call, which then reserves memory.
        """
        if not self._shapes:
            self._shapes = {name: (self._num_rows, *part.shape[1:]) for name, part in parts.items()}
            self._reserve()
        for name, part in parts.items():
            if self._file is None:
                self._arrays[name][start : start + len(part)] = part
            else:
                begin, end = self._places()[name]
                self._file.seek(self._room + begin + (end - begin) // self._num_rows * start)
                self._file.write(_bytes_of(part))

    def finish(self, facts: Mapping[str, Any]) -> Derived:
        """The arrays, mapped into memory, and the facts; the entry replaces one that is there.

        Raises:
            OSError: The file cannot be completed.
        """
        if self._file is None:
            return self._arrays, dict(facts)
        header = self._header(facts).ljust(self._room - 8)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.flush()
        os.fsync(self._file.fileno())  # else a power cut could leave the name, and zeros
        self._file.close()
        self._unfinished.replace(self._path)
        found = load_derived(*self._entry)
        if found is None:
            raise OSError(f"{self._path}: cannot be read although it was just written")
        return found

    def _reserve(self) -> None:
        """Reserves the space of the arrays, on the disk or else in memory."""
        self._room = -(-(8 + len(self._header({})) + _FACTS_ROOM) // 64) * 64  # numbers lie at multiples of their size
        size = self._room + max(end for _, end in self._places().values())
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self._file = self._unfinished.open("wb")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                self._file.truncate(size)
        except OSError as error:
            self.__exit__()
            self._file = None
            warn_unwritable(self._path.parent, error)
            self._arrays = {name: torch.empty(shape) for name, shape in self._shapes.items()}

    def _remove_abandoned(self) -> None:
        """Removes what killed processes left of entries of this kind; a process that lives writes every few seconds."""
        for left in self._path.parent.glob(f".{self._entry[0]}-*.safetensors.*"):
            with suppress(FileNotFoundError):  # another process was first
                if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                    left.unlink()

    def _places(self) -> dict[str, tuple[int, int]]:
        """The first byte of each array, and the one after its last."""
        places, end = {}, 0
        for name, shape in self._shapes.items():
            begin, end = end, end + 4 * math.prod(shape)
            places[name] = begin, end
        return places

    def _header(self, facts: Mapping[str, Any]) -> bytes:
        """The header of a file in the format of safetensors (https://github.com/huggingface/safetensors#format)."""
        arrays = {
            name: {"dtype": "F32", "shape": self._shapes[name], "data_offsets": place}
            for name, place in self._places().items()
        }
        return json.dumps({"__metadata__": {"facts": json.dumps(dict(facts))}, **arrays}).encode()


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """Float32 arrays ``(n, D)`` one after the other ``(N, D)``; large ones in a mapped file without a name.

    The file is in the cache folder, and gone when the array is. Where it cannot be written, a warning says so.
    """
    if len(parts) == 1:
        return parts[0]
    if sum(part.nbytes for part in parts) <= _IN_MEMORY:
        return torch.cat(list(parts))
    shape = sum(map(len, parts)), *parts[0].shape[1:]
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            file.writelines(_blocks(parts))
            file.flush()
            return torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape))
    except OSError as error:
        warn_unwritable(cache_folder(), error)
        return torch.cat(list(parts))


def _blocks(parts: Iterable[Tensor]) -> Iterable[memoryview]:
    return (_bytes_of(block) for part in parts for block in torch.split(part, 1024))


def _bytes_of(rows: Tensor) -> memoryview:
    return rows.to("cpu", torch.float32).contiguous().numpy().data
