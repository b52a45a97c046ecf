"""Splits of image files, with the paths of very many of them, and stamps by which their changes show."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.data.files.derived_cache import file_stamp_number, hash_tensors
from lit_ft.data.fingerprint import digest
from lit_ft.errors import UserError


@dataclass(frozen=True)
class PackedPaths(Sequence[Path]):
    """Paths below one folder, as bytes in one array that worker processes share.

    A million Python strings would be copied into each worker, one by one, as it reads them.
    """

    root: str  # what the paths begin with; those that are absolute stand for themselves
    text: NDArray[np.uint8]  # the bytes of all names within it, one after the other
    starts: NDArray[np.int64]  # where each name begins in the text, (N,)
    stops: NDArray[np.int64]  # where each ends, (N,)

    @classmethod
    def pack(cls, root: str | Path, names: Iterable[str | Path]) -> PackedPaths:
        """Packs names, which are taken as lying within ``root``."""
        encoded = [os.fsencode(name) for name in names]
        bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return cls(str(root), np.frombuffer(b"".join(encoded), np.uint8), bounds[:-1], bounds[1:])

    def __len__(self) -> int:
        """Number of paths."""
        return len(self.starts)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        """A path, with the folder."""
        return Path(self.full(index))

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

    def join(self, other: PackedPaths) -> PackedPaths:
        """These paths, followed by others."""
        if other.root == self.root:
            return PackedPaths.pack(self.root, [*self.names(), *other.names()])
        return PackedPaths.pack("", [paths.full(i) for paths in (self, other) for i in range(len(paths))])


@dataclass(frozen=True)
class FileSplit:
    """The ``N`` images of one split."""

    paths: PackedPaths
    targets: Tensor  # class of each, int64 (N,), or the labels or numbers of each, (N, K)
    groups: Tensor | None = None  # the group of each, such as the patient, by number, int64 (N,), where known

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def part(self, rows: Tensor) -> FileSplit:
        """The split of these images of this one."""
        groups = None if self.groups is None else self.groups[rows]
        return FileSplit(self.paths.part(rows), self.targets[rows], groups)

    def join(self, other: FileSplit) -> FileSplit:
        """The split of these images, followed by others."""
        groups = None if self.groups is None or other.groups is None else torch.cat([self.groups, other.groups])
        return FileSplit(self.paths.join(other.paths), torch.cat([self.targets, other.targets]), groups)

    def open(self, row: int) -> tuple[str, str]:
        """The path of an image, which is also what it is called in a message."""
        path = self.paths.full(row)
        return path, path

    def stamp(self) -> str:
        """What changes with the files: a hash of their paths, sizes and times."""
        return hash_tensors([torch.from_numpy(PhotoFiles.of(self.paths).keys)])

    def names_digest(self) -> str:
        """A hash of the names, independent of the folder that the images are in."""
        names = (os.path.join(*Path(name).parts[-2:]) if os.path.isabs(name) else name for name in self.paths.names())
        return digest(map(os.fsencode, names))

    def first_image(self) -> tuple[str, bytes]:
        """Name and content of the first image."""
        return self.paths.name(0), self.paths[0].read_bytes()

    def indexed(self) -> FileSplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))


@dataclass(frozen=True)
class PhotoFiles:
    """Absolute paths of ``N`` files, and for each a number that changes when the file does, int64 ``(N,)``."""

    names: list[str]
    keys: NDArray[np.int64]

    @classmethod
    def of(cls, paths: PackedPaths) -> PhotoFiles:
        """Looks at every file; raises `UserError` where one is gone."""
        names = list(paths.absolute())
        try:
            return cls(names, np.fromiter(map(file_stamp_number, names), np.int64, len(names)))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
