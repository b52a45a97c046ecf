"""Batches of photos, decoded and transformed when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_ft.backbones.resizing import PadToSquare
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.images.decode import cut, decode, decode_crop
from lit_ft.data.images.photo_cache import PhotoCache
from lit_ft.data.images.transforms import random_from
from lit_ft.data.loading.protocols import ImageBatch, ImageSet
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.loading.workers import InWorkers, Workers
from lit_ft.errors import UserError


class PhotoSet(ImageSet, Protocol):
    """The images of one split, each of which is read when it is needed."""

    def open(self, row: int) -> tuple[str | Tensor, str]:
        """The path of an image, or its pixels, uint8 ``(3, H, W)``; and what it is called in a message."""

    def stamp(self) -> str:
        """What changes with the images."""


@dataclass
class _Photos(Dataset[ImageBatch]):
    """Reads whole batches, in a worker process or not: of each image the index, and the seed of its augmentation."""

    split: PhotoSet
    transform: v2.Compose
    cache: PhotoCache | None
    reader: BandReader | None = None

    def __getitem__(self, samples: list[tuple[int, int]]) -> ImageBatch | UserError:  # type: ignore[override]
        try:
            images = []
            for index, seed in samples:
                with random_from(seed):  # for a data set that has changes of its own
                    image, name = self.split.open(index)
                if self.cache is not None:
                    image = self.cache[index]
                elif self.reader is not None and isinstance(image, str):
                    image = self.reader(image)
                images.append(transform_seeded(self.transform, image, seed, name))
        except UserError as error:
            return error
        return stack_images(images), self.split.targets[[index for index, _ in samples]]


def transform_seeded(
    transform: v2.Compose, image: str | BytesIO | Tensor, seed: int, name: str | None = None
) -> Tensor:
    """What a transform makes of a file, its content, or its pixels, its random numbers following from a seed alone.

    Where it makes a random crop, no more is decoded than that needs.

    Raises:
        UserError: The image cannot be read or transformed; ``name``, or else the path, says which.
    """
    first, *others = transform.transforms
    try:
        with random_from(seed):
            if not isinstance(first, v2.RandomResizedCrop):
                is_cropped = any(isinstance(step, v2.RandomResizedCrop) for step in others)
                least = first.size[0] if is_cropped else 0  # to evaluate, all pixels count
                made: Tensor = first(image if isinstance(image, Tensor) else decode(image, name, least))
            elif isinstance(image, Tensor):
                made = cut(image, first)
            else:
                made = decode_crop(image, first, name)
            for step in others:
                made = step(made)
    except (RuntimeError, MemoryError) as error:  # such as no memory
        reason = str(error).partition("\n")[0] or "out of memory"
        named = name if isinstance(image, Tensor) else name or image
        raise UserError(f"{named}: cannot be brought to the size of the network's images ({reason})") from error
    return made


def is_random(transform: v2.Compose) -> bool:
    """Whether a transform may make of an image something else each time."""
    return not all(isinstance(step, (v2.Resize, v2.CenterCrop, PadToSquare)) for step in transform.transforms)


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """A batch ``(B, C, H, W)`` in channels_last, the memory format of decoded images and of most networks.

    Any other would be a copy pixel by pixel here, and another one back for the network.
    """
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class PhotoSource:
    """Batches of images that are read when they are needed.

    Args:
        split: The images.
        transform: uint8 ``(3, H, W)``, or raw float32 ``(C, H, W)``, to the same of one size; its randomness comes from
            torch.
        workers: The processes that decode; when not given, none but this one.
        cache: Resized copies of the same images, in the same order, to read in their place.
        reader: How raw values of bands are read; photos when not given.
    """

    def __init__(
        self,
        split: PhotoSet,
        transform: v2.Compose,
        workers: Workers | None = None,
        cache: PhotoCache | None = None,
        reader: BandReader | None = None,
    ) -> None:
        self.split = split
        self._photos = _Photos(split, transform, cache, reader)
        self._loader = InWorkers(self._photos, workers)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.split)

    @property
    def is_augmented(self) -> bool:
        """Whether an image is read otherwise each time."""
        return is_random(self._photos.transform)

    def identity(self) -> str:
        """The images as they are now, the cache, what is done to them, and which bands are read."""
        transform, cache, reader = self._photos.transform, self._photos.cache, self._photos.reader
        bands = "" if reader is None else f" {reader}"
        return f"{self.split.stamp()} {None if cache is None else cache.made} {transform}{bands}"

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[ImageBatch]:
        """Yields each batch; raises `UserError` for an image that cannot be read."""
        seeds = torch.randint(2**63 - 1, (len(self),), generator=generator)
        # One batch at a time: a list of all would take seconds for a million images, before the first batch.
        asked = (list(zip(rows.tolist(), seeds[places].tolist(), strict=True)) for rows, places in batches)
        for batch in self._loader.batches(asked):
            images, targets = batch  # a list from memory that is pinned
            yield images, targets
