"""Data module of MNIST and the splits of EMNIST."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lit_ft.assets import data_root, download_dataset
from lit_ft.data.files.derived_cache import Derived
from lit_ft.data.files.idx import read_labelled
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Augment
from lit_ft.data.modules.arrays import HeldOutArrayDataModule
from lit_ft.data.modules.base import check_choice

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
        check_choice("domain", domain, ("source", "target"))
        check_choice("split", split, list(CLASS_NAMES))
        self.root = data_root(root)
        self.domain = domain
        self.split = split
        self.download = download

    @property
    def class_names(self) -> list[str]:
        """The digits or letters, in the order of the targets."""
        return list(CLASS_NAMES["digits" if self.domain == "source" else self.split])

    @property
    def test_name(self) -> str:
        """``MNIST/test`` or ``EMNIST/letters/test``."""
        return "MNIST/test" if self.domain == "source" else f"EMNIST/{self.split}/test"

    def prepare_data(self) -> None:
        """Fetches the files when asked to and one is missing."""
        missing = self.missing_files() if self.download else []
        if not missing:
            return
        from torchvision.datasets import EMNIST, MNIST

        if self.domain == "source":
            download_dataset(MNIST, missing[0].parent, root=str(self.root))
        else:
            download_dataset(EMNIST, missing[0].parent, root=str(self.root), split=self.split)

    def files(self) -> dict[Path, str | None]:
        """Images and labels for training and test, and torchvision's address of each."""
        from torchvision.datasets.mnist import EMNIST, MNIST

        wanted = [path for train in (True, False) for path in self._files(train)]
        if self.domain == "source":
            return {path: f"{MNIST.mirrors[0]}{path.name}.gz" for path in wanted}
        return dict.fromkeys(wanted, EMNIST.url)

    def parse(self) -> Derived:
        """Reads both pairs of files; EMNIST is turned upright and its targets start at 0."""
        (train_images, train_targets), (images, targets) = self._read(train=True), self._read(train=False)
        arrays = {"train_images": train_images, "train_targets": train_targets}
        return {**arrays, "test_images": images, "test_targets": targets}, {}

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        is_emnist = self.domain == "target"
        first_label = 1 if is_emnist and self.split == "letters" else 0
        images, targets = read_labelled(*self._files(train), self.num_classes, first_label)
        if is_emnist:  # its files have rows and columns exchanged
            images = images.transpose(2, 3).contiguous()
        return images, targets

    def _files(self, train: bool) -> tuple[Path, Path]:
        if self.domain == "source":
            stem = self.root / "MNIST" / "raw" / ("train" if train else "t10k")
        else:
            stem = self.root / "EMNIST" / "raw" / f"emnist-{self.split}-{'train' if train else 'test'}"
        return Path(f"{stem}-images-idx3-ubyte"), Path(f"{stem}-labels-idx1-ubyte")
