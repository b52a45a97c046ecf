"""Protocols of what is loaded: sets of images, and the sources that their batches are read from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.sampler import Picks

Augment = Literal["none", "basic", "trivial", "rand", "augmix"]
Split = Literal["train", "val", "test", "predict"]
SetT = TypeVar("SetT", bound="ImageSet")

ImageBatch = tuple[Tensor, Tensor]
"""Images, uint8 ``(B, C, H, W)``, and their targets or indices, int64 ``(B,)``."""


class ImageSet(Protocol):
    """The images of one split, read or not."""

    @property
    def targets(self) -> Tensor:
        """Class of each image, int64 ``(N,)``, or the labels or numbers of each, ``(N, K)``."""

    def __len__(self) -> int:
        """Number of images."""

    def part(self: SetT, rows: Tensor) -> SetT:
        """The set of these images, int64 ``(n,)``."""

    def names_digest(self) -> str:
        """A hash of what the images are called."""

    def first_image(self) -> tuple[str, bytes]:
        """What the first image is called, and what it holds."""


class Readable(Protocol):
    """What batches come from, of images or of what a frozen part of a network gave for them."""

    def read(
        self, batches: Sequence[Picks], generator: torch.Generator
    ) -> Iterator[tuple[Tensor | StageOutput, Tensor]]:
        """Yields each batch, with its targets.

        ``generator`` is the randomness of the augmentation. Whatever is drawn from it must be drawn for all places of
        the epoch at once, so that what happens in a place does not depend on which process or worker reads it, or when.
        """


class ImageSource(Readable, Protocol):
    """Images that can be read by index."""

    @property
    def split(self) -> ImageSet:
        """The images, and the targets of all of them."""

    @property
    def is_augmented(self) -> bool:
        """Whether an image is read otherwise each time."""

    def identity(self) -> str:
        """What differs between two sources whose images, or whose augmentations of them, do."""

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[ImageBatch]:
        """Yields the images of each batch, likewise."""

    def read_views(self, batches: Sequence[Picks], generators: Sequence[torch.Generator]) -> Iterator[ImageBatch]:
        """Yields the images of each batch in as many views as generators, those of an image one after the other.

        Each view draws what `read` does with its generator. The targets ``(B * views,)`` are in the same order.
        """

    def __len__(self) -> int:
        """Number of images."""
