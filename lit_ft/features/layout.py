"""Layout of a file of cached features: their order, type and checksums."""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 1 << 20
"""Bytes of features that share a checksum."""

_SUM = np.dtype("<u4")


@dataclass(frozen=True)
class Layout:
    """Content of a file of cached features: all images of a split, view after view, then checksums."""

    images: int
    views: int  # augmented ones of each image
    shape: tuple[int, ...]  # of the features of one image
    is_channels_last: bool  # whether the features are maps ``(C, H, W)`` whose channels lie together in memory
    computed: torch.dtype
    stored: torch.dtype

    @classmethod
    def like(cls, features: Tensor) -> Layout:
        """The layout of one image in one view, for features like those of a batch ``(B, ...)``."""
        channels_last = features.ndim == 4 and not features.is_contiguous()
        channels_last = channels_last and features.is_contiguous(memory_format=torch.channels_last)
        return cls(1, 1, tuple(features.shape[1:]), channels_last, features.dtype, features.dtype)

    @property
    def nbytes(self) -> int:
        """Size of the features in the file."""
        return self.views * self.images * math.prod(self.shape) * self.stored.itemsize

    @property
    def blocks(self) -> int:
        """Number of blocks of features, each with a checksum."""
        return -(-self.nbytes // _BLOCK)

    @property
    def file_bytes(self) -> int:
        """Size of the file: the features, followed by a CRC-32 of each block."""
        return self.nbytes + _SUM.itemsize * self.blocks

    def places(self, rows: Tensor) -> Tensor:
        """Where the features of some images ``(n,)`` lie, those of all views of an image in a row, ``(n * views,)``."""
        return (rows.unsqueeze(1) + self.images * torch.arange(self.views)).flatten()

    def reserve_file(self, file: Path) -> None:
        """Creates the file with all its space; raises ``OSError`` if the disk lacks it."""
        with file.open("wb") as opened:
            if hasattr(os, "posix_fallocate"):  # else a full disk would kill the process that writes through a map
                os.posix_fallocate(opened.fileno(), 0, self.file_bytes)
            else:
                opened.truncate(self.file_bytes)

    def map_file(self, file: Path) -> Tensor:
        """The features as a tensor ``(views * images, ...)`` in the file's memory order."""
        flat = torch.from_file(str(file), shared=True, size=self.nbytes // self.stored.itemsize, dtype=self.stored)
        shape = (*self.shape[1:], self.shape[0]) if self.is_channels_last else self.shape
        return flat.view(self.views * self.images, *shape)

    def encode(self, features: Tensor) -> Tensor:
        """Features of a batch as they lie in the file; raises ``OverflowError`` if they do not fit its type."""
        encoded = (features.permute(0, 2, 3, 1) if self.is_channels_last else features).to("cpu", self.stored)
        if self.stored != self.computed and not bool(encoded.isfinite().all()) and bool(features.isfinite().all()):
            name = str(self.stored).removeprefix("torch.")
            raise OverflowError(f"features of up to {features.abs().max():.3g} do not fit {name}")
        return encoded

    def decode(self, encoded: Tensor) -> Tensor:
        """Features of a batch from what lies in the file."""
        features = encoded.to(self.computed)
        return features.permute(0, 3, 1, 2) if self.is_channels_last else features

    def write_checksums(self, file: Path, blocks: range) -> None:
        """Writes the checksums of blocks whose features are complete; raises ``OSError`` on failure."""
        with file.open("r+b") as opened:
            opened.seek(self.nbytes + _SUM.itemsize * blocks.start)
            opened.write(self._checksums(file, blocks).tobytes())

    def is_intact(self, file: Path, blocks: range) -> bool:
        """Whether the file has its size, and these blocks have their checksums."""
        if file.stat().st_size != self.file_bytes:
            return False
        written = np.fromfile(file, _SUM, len(blocks), offset=self.nbytes + _SUM.itemsize * blocks.start)
        return bool((written == self._checksums(file, blocks)).all())

    def _checksums(self, file: Path, blocks: range) -> NDArray[np.uint32]:
        content = np.memmap(file, np.uint8, "r", shape=(self.nbytes,))
        return np.array([zlib.crc32(content[i * _BLOCK : (i + 1) * _BLOCK].data) for i in blocks], _SUM)
