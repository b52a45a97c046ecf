"""Paths of very many files, as bytes in one array that worker processes share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PackedPaths(Sequence[Path]):
    """Paths below one folder. A million Python strings would be copied into each worker, one by one, as it reads them.

    Args:
        root: What the paths begin with; those that are absolute stand for themselves.
        text: The bytes of all names within it, one after the other, uint8.
        starts: Where each path begins in the text, int64 ``(N,)``.
        stops: Where each ends, int64 ``(N,)``.
    """

    root: str
    text: NDArray[np.uint8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    @classmethod
    def pack(cls, root: str | Path, names: Iterable[str | Path]) -> PackedPaths:
        """Packs names, which are taken as lying within ``root``."""
        encoded = [os.fsencode(name) for name in names]
        stops = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]]) if encoded else stops
        return cls(str(root), np.frombuffer(b"".join(encoded), np.uint8), starts, stops)

    def __len__(self) -> int:
        """Number of paths."""
        return len(self.starts)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        """A path, with the folder."""
        return Path(self.root, self.name(index))

    def __iter__(self) -> Iterator[Path]:
        """All paths, in order."""
        return (self[i] for i in range(len(self)))

    def name(self, index: int) -> str:
        """A path within the folder."""
        return os.fsdecode(self.text[self.starts[index] : self.stops[index]].tobytes())

    def full(self, index: int) -> str:
        """A path, with the folder, as text: unlike `Path`, it leaves nothing behind in a worker that reads many."""
        return os.path.join(self.root, self.name(index))

    def names(self) -> Iterator[str]:
        """All paths within the folder, in order."""
        text = self.text.tobytes()
        return (os.fsdecode(text[i:j]) for i, j in zip(self.starts.tolist(), self.stops.tolist(), strict=True))

    def absolute(self) -> Iterator[str]:
        """All paths in full, in order, as text."""
        root = os.path.abspath(self.root)
        return (os.path.join(root, name) for name in self.names())

    def part(self, rows: Tensor) -> PackedPaths:
        """Those paths, int64 ``(n,)``, in that order; the text is shared."""
        return replace(self, starts=self.starts[rows.numpy()], stops=self.stops[rows.numpy()])
