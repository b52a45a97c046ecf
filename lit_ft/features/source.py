"""Decides how the outputs of a frozen part of a network are kept in a file, and read in the place of the images."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.protocols import Source
from lit_ft.data.loading.sampler import Picks, mix_seed

_STREAM = 2
"""Of `mix_seed`: the augmentation of views, apart from the order and from that of the epochs."""

_BLOCK = 1 << 20
"""Bytes of outputs that have a checksum of their own."""

_SUM = np.dtype("<u4")


@dataclass(frozen=True)
class Layout:
    """What the file of a split holds: ``views`` outputs of each of its images, view after view, and checksums.

    Args:
        images: Number of images.
        views: Number of versions of each image, augmented differently.
        shape: Of the output for one image.
        is_channels_last: Whether outputs are maps ``(C, H, W)`` whose channels lie together in memory.
        computed: The type that outputs are computed in, and given in.
        stored: The type that they are kept in.
    """

    images: int
    views: int
    shape: tuple[int, ...]
    is_channels_last: bool
    computed: torch.dtype
    stored: torch.dtype

    @classmethod
    def of(cls, output: Tensor, images: int, views: int, stored: torch.dtype | None = None) -> Layout:
        """The layout for outputs like those of a batch, ``(B, ...)``; kept so where ``stored`` is not given."""
        channels_last = output.ndim == 4 and not output.is_contiguous()
        channels_last = channels_last and output.is_contiguous(memory_format=torch.channels_last)
        return cls(images, views, tuple(output.shape[1:]), channels_last, output.dtype, stored or output.dtype)

    @property
    def numel(self) -> int:
        """Number of values in the file."""
        return self.views * self.images * math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the outputs in the file."""
        return self.numel * self.stored.itemsize

    @property
    def blocks(self) -> int:
        """Number of blocks of outputs, of which each has a checksum."""
        return -(-self.nbytes // _BLOCK)

    @property
    def file_bytes(self) -> int:
        """Size of the file: the outputs, and behind them a CRC-32 of each block."""
        return self.nbytes + _SUM.itemsize * self.blocks

    def reserve(self, file: Path) -> None:
        """Makes the file, with all the room that it needs; raises ``OSError`` where there is not as much."""
        with file.open("wb") as opened:
            if hasattr(os, "posix_fallocate"):  # else a disk that is full would kill who writes through a map
                os.posix_fallocate(opened.fileno(), 0, self.file_bytes)
            else:
                opened.truncate(self.file_bytes)

    def mapped(self, file: Path) -> Tensor:
        """The file as a tensor ``(views * images, ...)``, in the order in which values lie in it."""
        flat = torch.from_file(str(file), shared=True, size=self.numel, dtype=self.stored)
        return flat.view(self.views * self.images, *self._in_memory())

    def write_sums(self, file: Path, blocks: range) -> None:
        """Writes the checksums of some blocks, of which all outputs are written; raises ``OSError`` where it cannot."""
        with file.open("r+b") as opened:
            opened.seek(self.nbytes + _SUM.itemsize * blocks.start)
            opened.write(self._sums(file, blocks).tobytes())

    def is_intact(self, file: Path, blocks: range) -> bool:
        """Whether the file has its size, and some of its blocks have their checksums."""
        if file.stat().st_size != self.file_bytes:
            return False
        kept = np.fromfile(file, _SUM, len(blocks), offset=self.nbytes + _SUM.itemsize * blocks.start)
        return bool((kept == self._sums(file, blocks)).all())

    def _sums(self, file: Path, blocks: range) -> NDArray[np.uint32]:
        outputs = np.memmap(file, np.uint8, "r", shape=(self.nbytes,))
        return np.array([zlib.crc32(outputs[i * _BLOCK : (i + 1) * _BLOCK].data) for i in blocks], _SUM)

    def to_memory(self, output: Tensor) -> Tensor:
        """A batch's output as it lies in the file; raises ``OverflowError`` where it does not fit the type."""
        kept = (output.permute(0, 2, 3, 1) if self.is_channels_last else output).to("cpu", self.stored)
        if self.stored != self.computed and not bool(kept.isfinite().all()) and bool(output.isfinite().all()):
            raise OverflowError(f"outputs of up to {output.abs().max():.3g} do not fit {told(self.stored)}")
        return kept

    def from_memory(self, kept: Tensor) -> Tensor:
        """A batch of what lies in the file as the output that it was."""
        output = kept.to(self.computed)
        return output.permute(0, 3, 1, 2) if self.is_channels_last else output

    def _in_memory(self) -> tuple[int, ...]:
        if not self.is_channels_last:
            return self.shape
        channels, height, width = self.shape
        return height, width, channels


def told(dtype: torch.dtype) -> str:
    """The name of a type.

    >>> told(torch.float16)
    'float16'
    """
    return str(dtype).removeprefix("torch.")


def write_outputs(
    kept: Tensor,
    layout: Layout,
    source: Source,
    compute: Callable[[Tensor], Tensor],
    rows: range,
    batch_size: int,
    seed: int,
) -> Iterator[int]:
    """Fills in the outputs of some images, in all views, and yields the number of images of each batch that is done.

    Args:
        kept: Where to, as `Layout.mapped` gives it.
        layout: What that holds.
        source: The images; in each view they are augmented as in an epoch of its own, without a shuffle.
        compute: Images ``(B, C, H, W)`` to outputs ``(B, ...)``.
        rows: Which images; other processes may fill in the others.
        batch_size: Number of images in a batch.
        seed: Seed of the augmentation.
    """
    batches = [torch.arange(start, min(start + batch_size, rows.stop)) for start in rows[::batch_size]]
    for view in range(layout.views):
        done = source.read([Picks(part, part) for part in batches], view_generator(seed, view))
        for part, (images, _) in zip(batches, done, strict=True):
            kept[view * layout.images + part] = layout.to_memory(compute(images))
            yield len(part)


def view_generator(seed: int, view: int) -> torch.Generator:
    """Randomness of the augmentation of a view."""
    return torch.Generator().manual_seed(mix_seed(seed, view, _STREAM))


class FeatureSource:
    """Batches of outputs that were kept, in the place of images.

    Args:
        kept: The outputs, in the order of memory, ``(views * N, ...)``; on any device.
        layout: What that holds.
        source: The images.
        depth: Number of stages that they have gone through.
    """

    def __init__(self, kept: Tensor, layout: Layout, source: Source, depth: int) -> None:
        self._kept = kept
        self._layout = layout
        self._source = source
        self._depth = depth

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[tuple[StageOutput, Tensor]]:
        """Yields each batch; of each image, one of its views at random."""
        views = torch.randint(self._layout.views, (self._layout.images,), generator=generator)
        for rows, places in batches:
            where = views[places] * self._layout.images + rows
            values = self._kept.index_select(0, where.to(self._kept.device))
            yield StageOutput(self._layout.from_memory(values), self._depth), self._source.split.targets[rows]
