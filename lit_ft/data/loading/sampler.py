"""Batches of an epoch: a pure function of seed, epoch, rank and number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_ft.data.split import rows_by_class
from lit_ft.errors import UserError


def mix_seed(seed: int, epoch: int, stream: int = 0) -> int:
    """A 64-bit seed for one purpose (``stream``) in one epoch.

    Adding the numbers up would give run 1 in epoch 2 the order of run 2 in epoch 1, so they are hashed.

    >>> mix_seed(1, 2) == mix_seed(2, 1)
    False
    """
    # Words of a fixed width: SeedSequence would take [2**32] and [0, 1] for the same entropy.
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, epoch, stream]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def share(num: int, rank: int, world_size: int) -> range:
    """Which of some things, in one piece, are those of a process.

    >>> [share(10, rank, 3) for rank in range(3)]
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    return range(num * rank // world_size, num * (rank + 1) // world_size)


def seed_view(seed: int, view: int) -> torch.Generator:
    """The random generator of the augmentation of a view."""
    # A stream of its own, apart from those for the order and for the epochs' augmentation.
    return torch.Generator().manual_seed(mix_seed(seed, view, stream=2))


class Picks(NamedTuple):
    """The images of one batch: which of the set, and where in the epoch's order over all processes, int64 ``(B,)``.

    What is random about an image belongs to its place: an image that comes twice in an epoch is not augmented twice
    alike.
    """

    rows: Tensor
    places: Tensor


@dataclass(eq=False)
class EpochSampler:
    """The batches of one process, epoch by epoch.

    The shards of all processes are disjoint and cover the set, and each process has equally many batches, so none
    waits for another and no image is repeated or dropped. All batches have ``batch_size`` images except the last,
    which takes the rest of the shard: up to ``batch_size + 1``, as shards differ by at most one image.

    Args:
        training: Shuffle, and let a last batch of a single image join the one before it: batch norm cannot be
            trained on one image.
        shuffle: Whether the order differs from epoch to epoch; as ``training`` when not given.
        classes: Class of each image, ``(N,)``, where all classes shall come equally often: each has its share of the
            N places of an epoch (give or take one), filled with its images again and again, each time in a new order.

    Raises:
        UserError: There are fewer images than processes.
    """

    num_samples: int
    batch_size: int
    _: KW_ONLY
    training: bool = False
    shuffle: bool | None = None
    classes: Tensor | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.epoch = 0
        if self.num_samples < self.world_size:
            raise UserError(
                f"`trainer.devices`: {self.num_samples} image(s) cannot be shared among {self.world_size} process(es); "
                f"use at most {self.num_samples}, or more images"
            )
        if self.shuffle is None:
            self.shuffle = self.training

    def __len__(self) -> int:
        """Number of batches in an epoch, the same in every process."""
        full, rest = divmod(self.num_samples // self.world_size, self.batch_size)
        joins = rest == 0 or (rest == 1 and full > 0 and self.training and self.batch_size > 1)
        return full if joins else full + 1

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def batches(self) -> list[Picks]:
        """The images of each batch of this epoch in this process."""
        order, stops = self._order(), [i * self.batch_size for i in range(1, len(self))]
        return [Picks(order[places], places) for places in self._places().tensor_split(stops)]

    def augment_generator(self) -> torch.Generator:
        """Randomness of this epoch's augmentation; the same in every process, and apart from that of the order."""
        return torch.Generator().manual_seed(mix_seed(self.seed, self.epoch, stream=1))

    def _places(self) -> Tensor:
        """Those of this process."""
        return torch.arange(self.rank, self.num_samples, self.world_size)

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.num_samples)
        generator = self._order_generator()
        order = torch.randperm(self.num_samples, generator=generator)
        return order if self.classes is None else _balanced(self.classes, order, generator)

    def _order_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))


def _balanced(classes: Tensor, order: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of which each class has an equal share, in random places: those of ``order``, one after the other."""
    members = [rows for rows in rows_by_class(classes, 0) if len(rows)]
    shares = torch.full((len(members),), len(classes) // len(members))
    shares[torch.randperm(len(members), generator=generator)[: len(classes) % len(members)]] += 1
    picked = []
    for rows, share in zip(members, shares.tolist(), strict=True):
        rounds = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-share // len(rows)))]
        picked.append(torch.cat([*rounds, rows[:0]])[:share])
    balanced = torch.empty_like(order)
    balanced[order] = torch.cat(picked)
    return balanced


class ChunkSampler(EpochSampler):
    """The batches of one process, from a set that lies in chunks and is read one chunk after the other.

    The order of the chunks is shuffled, and the images within each. Each process has one run of places, so that it
    reads chunks of its own; only the first and the last are shared with its neighbours. ``options`` are those of
    `EpochSampler`, without ``classes``.
    """

    def __init__(self, chunk_sizes: Sequence[int], batch_size: int, **options: Any) -> None:
        super().__init__(sum(chunk_sizes), batch_size, **options)
        self._chunks = torch.arange(self.num_samples).tensor_split(np.cumsum(chunk_sizes)[:-1].tolist())

    def _places(self) -> Tensor:
        start, stop = (self.num_samples * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return torch.arange(start, stop)

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.cat(self._chunks)
        generator = self._order_generator()
        chunks = [self._chunks[i] for i in torch.randperm(len(self._chunks), generator=generator).tolist()]
        return torch.cat([chunk[torch.randperm(len(chunk), generator=generator)] for chunk in chunks])
