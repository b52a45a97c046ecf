"""Decides how photos become batches: the transform of each, and worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_ft.data.decode import decode
from lit_ft.data.loader import Batch
from lit_ft.data.paths import PackedPaths
from lit_ft.data.sampler import Picks
from lit_ft.errors import UserError

Sample = tuple[int, int]
"""Index of an image and the seed of its augmentation."""


def suggested_workers(processes_per_node: int = 1) -> int:
    """Worker processes for each training process: the CPUs it may count on, less itself, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, usable // processes_per_node - 1))


@dataclass(frozen=True)
class FileSplit:
    """The images of one split.

    Args:
        paths: Where each is, ``N`` of them.
        targets: Class of each, int64 ``(N,)``.
    """

    paths: PackedPaths
    targets: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def part(self, rows: Tensor) -> FileSplit:
        """The split of these images of this one."""
        return FileSplit(self.paths.part(rows), self.targets[rows])

    def indexed(self) -> FileSplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))


class _Photos(Dataset[Batch]):
    """Reads whole batches, in a worker process or not."""

    def __init__(self, split: FileSplit, transform: Callable[[Tensor], Tensor]) -> None:
        self.split = split
        self.transform = transform

    def __getitem__(self, samples: list[Sample]) -> Batch | UserError:  # type: ignore[override]
        try:
            images = torch.stack([self._image(*sample) for sample in samples])
        except UserError as error:
            return error
        return images, self.split.targets[[index for index, _ in samples]]

    def _image(self, index: int, seed: int) -> Tensor:
        return seeded(self.transform, decode(self.split.paths[index]), seed)


def seeded(transform: Callable[[Tensor], Tensor], image: Tensor, seed: int) -> Tensor:
    """Applies a transform whose random numbers follow from a seed alone."""
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`: that would reseed the GPUs too, which `fork_rng` does not restore here.
        torch.default_generator.manual_seed(seed)
        return transform(image)


class _Epoch:
    """The sampler of a DataLoader, whose batches change from epoch to epoch while its workers live on."""

    def __init__(self) -> None:
        self.batches: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class InWorkers:
    """Worker processes that live on from epoch to epoch, and make batches in the order in which they are asked for.

    Args:
        dataset: Makes a batch of what it is asked for. It returns a `UserError` rather than raises it: a worker's
            exception reaches the main process with the whole traceback as its text, what is returned as it is.
        num_workers: Number of processes; 0 for none but this one.
    """

    def __init__(self, dataset: Dataset[Any], num_workers: int) -> None:
        self.dataset = dataset
        self._epoch = _Epoch()
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,  # the sampler's batches are read as they are
            sampler=self._epoch,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # One of its own: without it, each epoch draws a number from the global generator, and a run resumed in
            # the middle of an epoch would see other dropout than one that was not interrupted.
            generator=torch.Generator(),
        )

    def batches(self, asked: Iterable[Any]) -> Iterator[Any]:
        """Yields what is made of each thing asked; raises `UserError` where that was returned."""
        self._epoch.batches = asked
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class PhotoSource:
    """Batches of a `FileSplit`.

    Args:
        split: The images.
        transform: uint8 ``(3, H, W)`` to uint8 of one size; its randomness comes from torch.
        num_workers: Number of processes that decode; 0 for none but this one.
    """

    def __init__(self, split: FileSplit, transform: Callable[[Tensor], Tensor], num_workers: int = 0) -> None:
        self._split = split
        self._loader = InWorkers(_Photos(split, transform), num_workers)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._split)

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[Batch]:
        """Yields each batch; raises `UserError` for an image that cannot be read."""
        seeds = torch.randint(2**63 - 1, (len(self),), generator=generator)
        asked = [list(zip(rows.tolist(), seeds[places].tolist(), strict=True)) for rows, places in batches]
        for batch in self._loader.batches(asked):
            images, targets = batch
            yield images, targets
