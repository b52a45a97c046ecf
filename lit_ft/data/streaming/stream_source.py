"""Batches of a streamed split, read by this process and decoded by its workers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_ft.data.files.derived_cache import hash_tensors
from lit_ft.data.loading.photo_source import is_random, stack_images, transform_seeded
from lit_ft.data.loading.protocols import Batch
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.loading.workers import InWorkers, Workers
from lit_ft.data.streaming.chunked_split import ChunkedSplit, unpack
from lit_ft.errors import UserError

Encoded = tuple[bytes, str, int]
"""An image file, its name, and the seed of its augmentation."""


class _Decoded(Dataset[Tensor]):
    """Decodes whole batches, in a worker process or not."""

    def __init__(self, transform: v2.Compose) -> None:
        self.transform = transform

    def __getitem__(self, samples: list[Encoded]) -> Tensor | UserError:  # type: ignore[override]
        try:
            images = [transform_seeded(self.transform, io.BytesIO(data), seed, name) for data, name, seed in samples]
        except UserError as error:
            return error
        return stack_images(images)


class StreamSource:
    """Batches of a `ChunkedSplit`, which this process reads and its workers decode.

    Only this process reads: workers that took turns at the same chunks would delete them from one another's cache.

    Args:
        split: The images.
        transform: uint8 ``(3, H, W)`` to uint8 of one size; its randomness comes from torch.
        workers: The processes that decode; when not given, none but this one.
    """

    def __init__(self, split: ChunkedSplit, transform: v2.Compose, workers: Workers | None = None) -> None:
        self.split = split
        self._transform = transform
        self._workers = InWorkers(_Decoded(transform), workers)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.split)

    @property
    def is_augmented(self) -> bool:
        """Whether random crops are taken."""
        return is_random(self._transform)

    def identity(self) -> str:
        """Where the images are, which of them, and what is done to them; not what they hold, which may be far away."""
        held = [self.split.stops, self.split.rows]
        return f"{self.split.folder} {hash_tensors(held)} {self._transform}"

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[Batch]:
        """Yields each batch; raises `UserError` for an image that cannot be read."""
        seeds = torch.randint(2**63 - 1, (len(self),), generator=generator)
        if batches:
            decoded = self._workers.batches(self._encoded(batches, seeds))
            for picks, images in zip(batches, decoded, strict=True):
                yield images, self.split.targets[picks.rows]

    def _encoded(self, batches: Sequence[Picks], seeds: Tensor) -> Iterator[list[Encoded]]:
        samples = self.split.samples(torch.cat([picks.rows for picks in batches]))
        for picks in batches:
            # The seeds first: where they end, `zip` must not have taken a sample.
            taken = zip(seeds[picks.places].tolist(), samples, strict=False)
            # Bytes of their own, not a view of a chunk that may be gone when they are sent.
            unpacked = [(seed, *unpack(bytes(sample))) for seed, sample in taken]
            yield [(image, f"{self.split.folder}: {name}", seed) for seed, name, image in unpacked]
