"""Decides how image sets that fit into memory are split, augmented and put into batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_ft.backbones.spec import InputSpec
from lit_ft.data.base import ImageDataModule, Split, check_fraction
from lit_ft.data.loader import Batch
from lit_ft.data.sampler import Picks
from lit_ft.data.split import hold_out
from lit_ft.data.transforms import ShiftFlip, resize_square


@dataclass(frozen=True)
class ArraySplit:
    """Some rows of an image array; splits share the array rather than copy it.

    Args:
        images: All images, uint8 ``(M, C, H, W)``.
        rows: Which of them belong to the split, int64 ``(N,)``.
        targets: The targets of these, int64 ``(N,)``.
    """

    images: Tensor
    rows: Tensor
    targets: Tensor

    @classmethod
    def whole(cls, images: Tensor, targets: Tensor) -> ArraySplit:
        """The split that has every row."""
        return cls(images, torch.arange(len(targets)), targets)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def part(self, rows: Tensor) -> ArraySplit:
        """The split of these images of this one."""
        return replace(self, rows=self.rows[rows], targets=self.targets[rows])

    def indexed(self) -> ArraySplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))


class ArraySource:
    """Batches of an `ArraySplit`.

    Args:
        split: The images.
        spec: The size to bring them to.
        augment: What to do to them at random, if anything.
    """

    def __init__(self, split: ArraySplit, spec: InputSpec, augment: ShiftFlip | None = None) -> None:
        self._split = split
        self._spec = spec
        self._augment = augment

    def __len__(self) -> int:
        """Number of images."""
        return len(self._split)

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[Batch]:
        """Yields each batch."""
        drawn = self._augment.draw(len(self), generator) if self._augment else None
        for rows, places in batches:
            images = self._split.images.index_select(0, self._split.rows[rows])
            if self._augment is not None and drawn is not None:
                images = self._augment(images, drawn[places])
            yield resize_square(images, self._spec), self._split.targets[rows]


class ArrayDataModule(ImageDataModule[ArraySplit]):
    """Image sets that fit into memory.

    Args:
        **common: The options of every data module.
    """

    basic_augment: ShiftFlip

    @property
    @abstractmethod
    def test_name(self) -> str:
        """What the names in `predict_paths` begin with."""

    @property
    def predict_paths(self) -> list[str]:
        """The name of each test image, such as ``MNIST/test/17``."""
        return [f"{self.test_name}/{i}" for i in range(len(self.splits["test"]))]

    def source(self, split: Split, augment: bool) -> ArraySource:
        """The images of a split; those of ``predict`` are the test images with their index as target."""
        data = self.splits["test"].indexed() if split == "predict" else self.splits[split]
        return ArraySource(data, self.input_spec, self.basic_augment if augment else None)


class HeldOutArrayDataModule(ArrayDataModule):
    """Image sets with an official test set, whose validation images are held out from the training images.

    Args:
        val_fraction: Fraction of the training images held out for validation, of each class in proportion.
        **common: The options of every data module.
    """

    def __init__(self, val_fraction: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        check_fraction("val_fraction", val_fraction)
        self.val_fraction = val_fraction

    @abstractmethod
    def read_official(self) -> tuple[ArraySplit, ArraySplit]:
        """Reads the official training and test images."""

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Holds the validation images out."""
        train, test = self.read_official()
        kept, held = hold_out(train.targets, self.val_fraction, self.split_seed, "--data.val_fraction")
        return {"train": train.part(kept), "val": train.part(held), "test": test}
