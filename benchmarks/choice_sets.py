"""Small sets of photos and letters as class folders: the targets of ``probe_choice.py``, and what it pretrains on.

CIFAR-10 and letters are divided by class: the first, third, … are pretrained on, the others are a target.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from lit_ft import CIFAR10DataModule, MNISTToEMNISTDataModule

Picture = Path | Tensor
"""A file, or an image ``(C, H, W)``."""
Classes = Mapping[str, Sequence[Picture]]


@dataclass(frozen=True)
class Target:
    """A set to choose a backbone for.

    Args:
        train: Number of training images of each class, in each split.
        val: Likewise for validation.
        test: Likewise for test, which are the same images in all splits.
        size: Side of the images in pixels, for networks that take any.
        augment: Augmentation of the training images.
    """

    train: int
    val: int
    test: int
    size: int
    augment: str


FLOWERS, CIFAR, LETTERS = "flowers5", "CIFAR-10, 5 classes", "letters, 13 classes"
TARGETS = {
    FLOWERS: Target(20, 10, 50, 96, "basic"),
    CIFAR: Target(20, 10, 80, 96, "basic"),
    LETTERS: Target(8, 4, 30, 64, "none"),
}


@dataclass(frozen=True)
class Sources:
    """The folders with the data.

    Args:
        data: Has ``flowers5`` and ``weights``.
        cifar: Has ``cifar-10-batches-py``.
        letters: Has ``EMNIST/raw``, with the files of the split letters.
    """

    data: Path
    cifar: Path
    letters: Path

    def read(self, name: str, pretraining: bool = False) -> tuple[Classes, Classes | None]:
        """The images of a set by class, and those for test where it has such.

        Args:
            name: Of the set.
            pretraining: Whether those to pretrain on are wanted, of which none are for test.
        """
        if name == FLOWERS:
            return read_flowers(self.data / "flowers5"), None
        is_cifar = name == CIFAR
        arrays = CIFAR10DataModule(str(self.cifar)) if is_cifar else None
        data = arrays or MNISTToEMNISTDataModule(str(self.letters), split="letters")
        data.setup()
        wanted = [(k, data.class_names[k]) for k in range(1 - pretraining, data.num_classes, 2)]
        train, test = (
            {label: split.images[split.rows[split.targets == k]] for k, label in wanted}
            for split in (data.splits["train"], data.splits["test"])
        )
        return train, None if pretraining else test


def read_flowers(folder: Path) -> Classes:
    """The photos of both of its splits, by class."""
    labels = sorted(label.name for label in (folder / "train").iterdir())
    return {label: sorted(folder.glob(f"*/{label}/*.jpg")) for label in labels}


def draw(train: Classes, test: Classes | None, target: Target, split: int) -> dict[str, dict[str, list[Picture]]]:
    """The images of each part of a split, by class; no image is in two parts, nor in train or val of two splits.

    Args:
        train: Images by class.
        test: Those for test; when not given, the first of the others in a random order.
        target: How many are wanted.
        split: Number of the split.
    """
    parts: dict[str, dict[str, list[Picture]]] = {"train": {}, "val": {}, "test": {}}
    for label, images in train.items():
        order = random.Random(0).sample(range(len(images)), len(images))
        if test is None:
            held_out, order = [images[i] for i in order[: target.test]], order[target.test :]
        else:
            held_out = list(test[label][: target.test])
        first = split * (target.train + target.val)
        chosen = [images[i] for i in order[first : first + target.train + target.val]]
        if len(held_out) < target.test or len(chosen) < target.train + target.val:
            raise SystemExit(f"{label}: {len(images)} images are too few for split {split}")
        parts["train"][label], parts["val"][label] = chosen[: target.train], chosen[target.train :]
        parts["test"][label] = held_out
    return parts


def write(folder: Path, classes: Classes) -> Path:
    """Writes images as PNG, or links to photos, one folder a class."""
    for label, images in classes.items():
        (folder / label).mkdir(parents=True)
        for i, image in enumerate(images):
            if isinstance(image, Path):
                (folder / label / image.name).symlink_to(image.resolve())
            else:
                to_pil_image(image).save(folder / label / f"{i}.png")
    return folder
