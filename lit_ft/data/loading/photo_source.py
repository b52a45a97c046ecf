"""Batches of photos, decoded and transformed when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_ft.backbones.resizing import PadToSquare
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.images.crops import make_crops
from lit_ft.data.images.decode import READ_BY, decode
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
    """Reads whole batches, in a worker process or not: of each image the index, and the seed of each of its views."""

    split: PhotoSet
    transform: v2.Compose
    cache: PhotoCache | None
    reader: BandReader | None = None

    def __getitem__(self, samples: list[tuple[int, list[int]]]) -> ImageBatch | UserError:  # type: ignore[override]
        try:
            images = [view for index, seeds in samples for view in self._views(index, seeds)]
        except UserError as error:
            return error
        return stack_images(images), self.split.targets[[index for index, seeds in samples for _ in seeds]]

    def _views(self, index: int, seeds: list[int]) -> list[Tensor]:
        """The views of an image: of one decode, or where a data set has the pixels, each as that gives them anew."""
        views = []
        for seed in seeds:
            with random_from(seed):  # for a data set that has changes of its own
                image, name = self.split.open(index)
            if self.cache is not None:
                return transform_views(self.transform, self.cache[index], seeds, name)
            if isinstance(image, str):
                read = image if self.reader is None else self.reader(image)
                return transform_views(self.transform, read, seeds, name)
            views.append(transform_seeded(self.transform, image, seed, name))
        return views


def transform_seeded(
    transform: v2.Compose, image: str | BytesIO | Tensor, seed: int, name: str | None = None
) -> Tensor:
    """What a transform makes of an image, its random numbers following from a seed alone; see `transform_views`."""
    return transform_views(transform, image, [seed], name)[0]


def transform_views(
    transform: v2.Compose, image: str | BytesIO | Tensor, seeds: Sequence[int], name: str | None = None
) -> list[Tensor]:
    """What a transform makes of a file, its content, or its pixels, for each seed that its random numbers follow from.

    The image is decoded once. Where the transform makes random crops, no more is decoded than these need.

    Raises:
        UserError: The image cannot be read or transformed; ``name``, or else the path, says which.
    """
    views = []
    try:
        with random_from(seeds[0]):
            begun, others = _begin_views(transform, image, seeds, name)
            for made in begun:
                for step in others:
                    made = step(made)
                views.append(made)
    except (RuntimeError, MemoryError) as error:  # such as no memory
        reason = str(error).partition("\n")[0] or "out of memory"
        named = name if isinstance(image, Tensor) else name or image
        raise UserError(f"{named}: cannot be brought to the size of the network's images ({reason})") from error
    return views


def _begin_views(
    transform: v2.Compose, image: str | BytesIO | Tensor, seeds: Sequence[int], name: str | None
) -> tuple[Iterator[Tensor], Sequence[Callable[[Tensor], Tensor]]]:
    """The views after the first steps, each with its random numbers as they then are, and the steps that are left."""
    steps = transform.transforms
    if isinstance(steps[0], v2.RandomResizedCrop):
        return make_crops(image, steps[0], seeds, name), steps[1:]
    fixed = list(takewhile(_is_fixed, steps))
    is_cropped = any(isinstance(step, v2.RandomResizedCrop) for step in steps)
    least = steps[0].size[0] if is_cropped else 0  # to evaluate, all pixels count
    made = image if isinstance(image, Tensor) else decode(image, name, least)
    for step in fixed:
        made = step(made)

    def seeded() -> Iterator[Tensor]:
        for seed in seeds:
            torch.default_generator.manual_seed(seed)
            yield made

    return seeded(), steps[len(fixed) :]


def draw_seeds(num: int, generators: Sequence[torch.Generator]) -> Tensor:
    """The seeds of so many images in the view of each generator, int64 ``(num, views)``."""
    return torch.stack([torch.randint(2**63 - 1, (num,), generator=generator) for generator in generators], dim=1)


def is_random(transform: v2.Compose) -> bool:
    """Whether a transform may make of an image something else each time."""
    return not all(map(_is_fixed, transform.transforms))


def _is_fixed(step: object) -> bool:
    return isinstance(step, (v2.Resize, v2.CenterCrop, PadToSquare))


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
        """The images as they are now, the cache, what is done to them, by which versions, and which bands are read."""
        transform, cache, reader = self._photos.transform, self._photos.cache, self._photos.reader
        bands = "" if reader is None else f" {reader}"
        return f"{self.split.stamp()} {None if cache is None else cache.made} {transform} {READ_BY}{bands}"

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[ImageBatch]:
        """Yields each batch; raises `UserError` for an image that cannot be read."""
        return self.read_views(batches, [generator])

    def read_views(self, batches: Sequence[Picks], generators: Sequence[torch.Generator]) -> Iterator[ImageBatch]:
        """Yields each batch in several views; raises `UserError` for an image that cannot be read.

        An image is decoded once for all of its views, at the scale of the part that needs the finest. Otherwise the
        views are those that `read` gives for each generator.
        """
        seeds = draw_seeds(len(self), generators)
        # One batch at a time: a list of all would take seconds for a million images, before the first batch.
        asked = (list(zip(rows.tolist(), seeds[places].tolist(), strict=True)) for rows, places in batches)
        for batch in self._loader.batches(asked):
            images, targets = batch  # a list from memory that is pinned
            yield images, targets
