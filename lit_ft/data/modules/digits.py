"""Data module of scikit-learn's handwritten digits, in MNIST's format."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit
from lit_ft.data.split import hold_out

NUM_TEST = 1000
NUM_VAL = 300


def mnist_format(images: np.ndarray[Any, Any]) -> Tensor:
    """Draws 8x8 digits the way MNIST has them: 20x20 in the middle of 28x28.

    Args:
        images: Values from 0 to 16, ``(N, 8, 8)``.

    Returns:
        uint8 ``(N, 1, 28, 28)``.
    """
    ink = torch.from_numpy(images).float().unsqueeze(1) * (255 / 16)
    # Of the two, bicubic has the sharper strokes: standard deviation 0.29 of full scale, bilinear 0.28, MNIST 0.31.
    drawn = F.resize(ink, [20, 20], InterpolationMode.BICUBIC, antialias=True).round().clamp(0, 255)
    framed: Tensor = F.pad(drawn.to(torch.uint8), [4, 4, 4, 4])
    return framed


class DigitsDataModule(ArrayDataModule):
    """Handwritten digits that come with scikit-learn, drawn in MNIST's format; nothing is read from disk.

    Of the 1,797 images 1,000 are for test and 300 for validation; the rest is what ``shots`` are taken from.

    Args:
        shots: Train on this many images per class; fewer are always a subset of more. ``null``: on all, about 49.
        augment: ``basic`` shifts by up to 2 pixels. Nothing is mirrored: that makes other digits. ``rand`` turns by
            9 degrees at a time and ``augmix`` by up to 7; ``trivial`` by up to 135, which makes a 9 of a 6,
            or moves by up to 32 pixels, which leaves some images black.
        **common: The options of every data module.
    """

    basic_augment = ShiftFlip(shift=2)

    def __init__(self, shots: int | None = 10, augment: Augment = "basic", **common: Any) -> None:
        super().__init__(shots=shots, augment=augment, **common)

    @property
    def class_names(self) -> list[str]:
        """``0`` to ``9``."""
        return [str(digit) for digit in range(10)]

    @property
    def test_name(self) -> str:
        """``digits/test``."""
        return "digits/test"

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Draws the digits and splits them, each class in proportion."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        whole = ArraySplit.whole(mnist_format(digits.images), torch.from_numpy(digits.target).long())
        rest, test = hold_out(whole.targets, NUM_TEST, self.split_seed, "`data.split_seed`")
        train, val = hold_out(whole.targets[rest], NUM_VAL, self.split_seed, "`data.split_seed`")
        return {"train": whole.part(rest[train]), "val": whole.part(rest[val]), "test": whole.part(test)}
