"""Decides how image sets that fit into memory are split, augmented and put into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_ft.backbones.spec import InputSpec
from lit_ft.data.base import ImageDataModule, Split, check_fraction
from lit_ft.data.loader import Batch
from lit_ft.data.split import class_counts, hold_out, keep_shots
from lit_ft.data.transforms import ShiftFlip, resize_square
from lit_ft.errors import UserError


@dataclass(frozen=True)
class ArraySplit:
    """Some rows of an image array; splits share the array rather than copy it.

    Args:
        images: All images, uint8 ``(N, C, H, W)``.
        targets: All targets, int64 ``(N,)``.
        rows: Which of them belong to the split.
    """

    images: Tensor
    targets: Tensor
    rows: Tensor

    @classmethod
    def whole(cls, images: Tensor, targets: Tensor) -> ArraySplit:
        """The split that has every row."""
        return cls(images, targets, torch.arange(len(targets)))

    def part(self, rows: Tensor) -> ArraySplit:
        """The split that has these rows of the same arrays."""
        return ArraySplit(self.images, self.targets, rows)


class ArraySource:
    """Batches of an `ArraySplit`.

    Args:
        split: The images.
        spec: The size to bring them to.
        augment: What to do to them at random, if anything.
        indexed: Yield the position within the split as the target.
    """

    def __init__(
        self, split: ArraySplit, spec: InputSpec, augment: ShiftFlip | None = None, indexed: bool = False
    ) -> None:
        self._split = split
        self._spec = spec
        self._augment = augment
        self._targets = torch.arange(len(split.rows)) if indexed else split.targets[split.rows]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._split.rows)

    def read(self, batches: Sequence[Tensor], generator: torch.Generator) -> Iterator[Batch]:
        """Yields each batch."""
        drawn = self._augment.draw(len(self), generator) if self._augment else None
        for batch in batches:
            images = self._split.images.index_select(0, self._split.rows[batch])
            if self._augment is not None and drawn is not None:
                images = self._augment(images, drawn[batch])
            yield resize_square(images, self._spec), self._targets[batch]


class ArrayDataModule(ImageDataModule):
    """Image sets that fit into memory.

    Args:
        shots: Train on this many images per class, chosen by ``split_seed``; fewer are always a subset of more.
            When not given, on all.
        **common: The options of every data module.
    """

    basic_augment: ShiftFlip

    def __init__(self, shots: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        if shots is not None and shots < 1:
            raise UserError(f"--data.shots: {shots} is less than 1")
        self.shots = shots
        self._splits: dict[Split, ArraySplit] = {}

    def read_splits(self) -> tuple[ArraySplit, ArraySplit, ArraySplit]:
        """Reads the images for training, validation and test."""
        raise NotImplementedError

    @property
    def test_name(self) -> str:
        """What the names in `predict_paths` begin with."""
        raise NotImplementedError

    @property
    def predict_paths(self) -> list[str]:
        """The name of each test image, such as ``MNIST/test/17``."""
        return [f"{self.test_name}/{i}" for i in range(len(self._splits["test"].rows))]

    def counts(self) -> dict[str, list[int]]:
        """Number of images of each class, by split. Needs `setup`."""
        return {name: class_counts(s.targets[s.rows], self.num_classes) for name, s in self._splits.items()}

    def read(self) -> None:
        """Reads the splits and keeps the shots."""
        train, val, test = self.read_splits()
        if self.shots is not None:
            train = train.part(keep_shots(train.targets, train.rows, self.shots, self.split_seed, self.class_names))
        self._splits = {"train": train, "val": val, "test": test}

    def source(self, split: Split, augment: bool) -> ArraySource:
        """The images of a split; those of ``predict`` are the test images with their index as target."""
        data = self._splits["test" if split == "predict" else split]
        random = self.basic_augment if augment else None
        return ArraySource(data, self.input_spec, random, indexed=split == "predict")


class HeldOutArrayDataModule(ArrayDataModule):
    """Image sets with an official test set, whose validation images are held out from the training images.

    Args:
        val_fraction: Fraction of the training images held out for validation, of each class in proportion.
        **common: The options of every array data module.
    """

    def __init__(self, val_fraction: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        check_fraction("val_fraction", val_fraction)
        self.val_fraction = val_fraction

    def read_official(self) -> tuple[ArraySplit, ArraySplit]:
        """Reads the official training and test images."""
        raise NotImplementedError

    def read_splits(self) -> tuple[ArraySplit, ArraySplit, ArraySplit]:
        """Holds the validation images out."""
        train, test = self.read_official()
        kept, held = hold_out(train.targets, train.rows, self.val_fraction, self.split_seed, "--data.val_fraction")
        return train.part(kept), train.part(held), test
