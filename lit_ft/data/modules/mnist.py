"""Data modules of handwriting: MNIST and the splits of EMNIST, and scikit-learn's digits drawn in their format."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_ft.assets import data_root, download_dataset
from lit_ft.data.files.idx import read_labelled
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit, HeldOutArrayDataModule, Parsed
from lit_ft.data.modules.options import check_choice
from lit_ft.data.split import hold_out

Domain = Literal["source", "target"]
EMNISTSplit = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]

_MERGED = [*string.digits, *string.ascii_uppercase, *"abdefghnqrt"]
"""Letters whose two cases look alike are one class, named by the capital (Cohen et al., 2017, arXiv:1702.05373)."""

CLASS_NAMES: dict[str, list[str]] = {
    "byclass": [*string.digits, *string.ascii_uppercase, *string.ascii_lowercase],
    "bymerge": _MERGED,
    "balanced": _MERGED,
    "letters": [*string.ascii_lowercase],
    "digits": [*string.digits],
    "mnist": [*string.digits],
}


class MNISTToEMNISTDataModule(HeldOutArrayDataModule):
    """Handwritten digits (MNIST) as the source, handwritten letters and digits (EMNIST) as the target.

    Both have grey 28x28 images. The files are those of torchvision, plain or gzipped: ``ROOT/MNIST/raw/`` and
    ``ROOT/EMNIST/raw/``.

    Args:
        root: Folder with ``MNIST`` and ``EMNIST`` (default: the environment variable LIT_FT_DATA, or ``data``).
        domain: ``source`` for MNIST, ``target`` for EMNIST.
        split: Which split of EMNIST; they differ in their classes.
        download: Fetch the files when they are missing.
        augment: ``basic`` shifts by up to 2 pixels. Nothing is mirrored: that makes other letters. ``rand`` turns by
            9 degrees at a time and ``augmix`` by up to 7; ``trivial`` by up to 135, which makes a 9 of a 6,
            or moves by up to 32 pixels, which leaves some images black.
        **common: The options of every array data module.
    """

    basic_augment = ShiftFlip(shift=2)

    def __init__(
        self,
        root: str | None = None,
        domain: Domain = "target",
        split: EMNISTSplit = "byclass",
        download: bool = False,
        augment: Augment = "none",
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        check_choice("domain", domain, get_args(Domain))
        check_choice("split", split, get_args(EMNISTSplit))
        self.root = data_root(root)
        self.domain = domain
        self.split = split
        self.download = download
        self.test_name = "MNIST/test" if domain == "source" else f"EMNIST/{split}/test"

    @property
    def class_names(self) -> list[str]:
        """The digits or letters, in the order of the targets."""
        return list(CLASS_NAMES["digits" if self.domain == "source" else self.split])

    def prepare_data(self) -> None:
        """Fetches the files when asked to and one is missing."""
        if self.download and (missing := self.missing_files()):
            from torchvision.datasets import EMNIST, MNIST

            options = {} if self.domain == "source" else {"split": self.split}
            download_dataset(EMNIST if options else MNIST, missing[0].parent, root=str(self.root), **options)

    def files(self) -> dict[Path, str | None]:
        """Images and labels for training and test, and torchvision's address of each."""
        from torchvision.datasets.mnist import EMNIST, MNIST

        wanted, is_mnist = [*self._files(train=True), *self._files(train=False)], self.domain == "source"
        return {path: f"{MNIST.mirrors[0]}{path.name}.gz" if is_mnist else EMNIST.url for path in wanted}

    def parse(self) -> Parsed:
        """Reads both pairs of files; EMNIST is turned upright and its targets start at 0."""
        return self._read(train=True), self._read(train=False), {}

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        is_emnist = self.domain == "target"
        first_label = 1 if is_emnist and self.split == "letters" else 0
        images, targets = read_labelled(*self._files(train), self.num_classes, first_label)
        if is_emnist:  # its files have rows and columns exchanged
            images = images.transpose(2, 3).contiguous()
        return images, targets

    def _files(self, train: bool) -> tuple[Path, Path]:
        if self.domain == "source":
            stem = f"MNIST/raw/{'train' if train else 't10k'}"
        else:
            stem = f"EMNIST/raw/emnist-{self.split}-{'train' if train else 'test'}"
        return self.root / f"{stem}-images-idx3-ubyte", self.root / f"{stem}-labels-idx1-ubyte"


def mnist_format(images: np.ndarray[Any, Any]) -> Tensor:
    """Draws digits, 0 to 16 ``(N, 8, 8)``, as MNIST does: 20x20 in the middle of uint8 ``(N, 1, 28, 28)``."""
    ink = torch.from_numpy(images).float().unsqueeze(1) * (255 / 16)
    # Of the two, bicubic has the sharper strokes: standard deviation 0.29 of full scale, bilinear 0.28, MNIST 0.31.
    drawn = F.resize(ink, [20, 20], InterpolationMode.BICUBIC, antialias=True).round().clamp(0, 255)
    framed: Tensor = F.pad(drawn.to(torch.uint8), [4, 4, 4, 4])
    return framed


@cache
def _draw_digits() -> tuple[Tensor, Tensor]:
    """All digits, uint8 ``(1797, 1, 28, 28)``, and their targets; once a process, as reading takes longest."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return mnist_format(digits.images), torch.from_numpy(digits.target).long()


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

    class_names = CLASS_NAMES["digits"]
    test_name = "digits/test"
    basic_augment = ShiftFlip(shift=2)

    def __init__(self, shots: int | None = 10, augment: Augment = "basic", **common: Any) -> None:
        super().__init__(shots=shots, augment=augment, **common)

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Draws the digits and splits them, each class in proportion."""
        images, targets = _draw_digits()
        whole = ArraySplit.whole(images.clone(), targets)
        rest, test = hold_out(whole.targets, 1000, self.split_seed, "`data.split_seed`")
        train, val = self.hold_out_val(whole.part(rest), 300, "`data.split_seed`")
        return {"train": train, "val": val, "test": whole.part(test)}
