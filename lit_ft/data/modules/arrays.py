"""Data modules of image sets that fit into memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.files.derived_cache import Derived, file_stamp, hash_tensors, load_or_derive, match_layout
from lit_ft.data.fingerprint import digest
from lit_ft.data.folds import check_folds, take_fold
from lit_ft.data.images.transforms import PerImage, ShiftFlip, policy, resize_square
from lit_ft.data.loading.protocols import Augment, ImageBatch, Split
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.options import check_fraction
from lit_ft.data.pages import encode_thumbnail
from lit_ft.data.split import hold_out

Parsed = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], dict[str, Any]]
"""Images, uint8 ``(N, C, H, W)``, and targets, int64 ``(N,)``, of train and of test; and facts of the files."""
_NAMES = ("train_images", "train_targets", "test_images", "test_targets")
_PARSER = 1
"""Version of the parsed arrays; to be raised when files are parsed in another way."""


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

    groups: ClassVar[None] = None

    @classmethod
    def whole(cls, images: Tensor, targets: Tensor) -> ArraySplit:
        """The split that has every row."""
        return cls(images, torch.arange(len(targets)), targets)

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: Tensor) -> ArraySplit:
        """The split of these images of this one."""
        return replace(self, rows=self.rows[rows], targets=self.targets[rows])

    def join(self, other: ArraySplit) -> ArraySplit:
        """The split of these images, followed by others."""
        targets = torch.cat([self.targets, other.targets])
        if other.images is self.images:
            return replace(self, rows=torch.cat([self.rows, other.rows]), targets=targets)
        parts = [split.images.index_select(0, split.rows.to(split.images.device)) for split in (self, other)]
        return ArraySplit.whole(torch.cat(parts), targets)

    def thumbnail(self, row: int) -> str:
        """A small JPEG of an image in base 64."""
        return encode_thumbnail(to_pil_image(self.image(row)))

    def image(self, row: int) -> Tensor:
        """An image, uint8 ``(C, H, W)``, on the CPU."""
        return self.images[self.rows[row]].cpu()

    def indexed(self) -> ArraySplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))

    def names_digest(self) -> str:
        """A hash of the rows."""
        return digest([self.rows.numpy().tobytes()])

    def first_image(self) -> tuple[str, bytes]:
        """The row of the first image, and what it holds."""
        return f"{int(self.rows[0]):012}", self.images[int(self.rows[0])].cpu().contiguous().numpy().tobytes()


class ArraySource:
    """Batches of an `ArraySplit`, brought to the size of a spec and augmented at random, by one after the other."""

    def __init__(self, split: ArraySplit, spec: InputSpec, augments: Sequence[ShiftFlip | PerImage] = ()) -> None:
        self.split = split
        self._spec = spec
        self._augments = augments

    def __len__(self) -> int:
        return len(self.split)

    @property
    def is_augmented(self) -> bool:
        """Whether something is done to them at random."""
        return bool(self._augments)

    def identity(self) -> str:
        """The images themselves, the size, and what is done to them."""
        images = self.split.images.cpu()
        return f"{hash_tensors([images, self.split.rows])} {tuple(images.shape)} {self._spec} {self._augments}"

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[ImageBatch]:
        """Yields each batch, its images where all images are."""
        drawn = [(augment, augment.draw(len(self), generator)) for augment in self._augments]
        for rows, places in batches:
            everything = self.split.images
            chosen = self.split.rows[rows].to(everything.device, non_blocking=True)  # else a GPU would be waited for
            images = _take(everything, chosen)
            for augment, parameters in drawn:
                images = augment(images, parameters[places])
            yield resize_square(images, self._spec), self.split.targets[rows]

    def read_views(self, batches: Sequence[Picks], generators: Sequence[torch.Generator]) -> Iterator[ImageBatch]:
        """Yields each batch in several views."""
        for views in zip(*(self.read(batches, generator) for generator in generators), strict=True):
            images = torch.stack([images for images, _ in views], dim=1).flatten(0, 1)
            yield images, views[0][1].repeat_interleave(len(views), dim=0)


def _take(images: Tensor, rows: Tensor) -> Tensor:
    """Some of the images, contiguous ``(n, C, H, W)``, of all of them, whose channels may come last in memory."""
    last = images.permute(0, 2, 3, 1)
    if images.is_contiguous() or not last.is_contiguous():
        return images.index_select(0, rows)
    return last.index_select(0, rows).permute(0, 3, 1, 2).contiguous()  # ten times as fast


class ArraySources:
    """Makes the sources of a data set in memory, on the device of the model if they fit there."""

    def __init__(self) -> None:
        self._near: dict[tuple[int, torch.device], Tensor] = {}

    def make(
        self, split: ArraySplit, spec: InputSpec, basic: ShiftFlip, augment: Augment = "none", trainer: Any = None
    ) -> ArraySource:
        """The source of a split.

        Args:
            split: The images; splits that share them share a copy.
            spec: Their size.
            basic: What ``basic`` stands for.
            augment: Their augmentation.
            trainer: The trainer, whose device they are for.
        """
        if (further := policy(augment)) is not None:
            return ArraySource(split, spec, [basic, PerImage(further)])
        device = trainer.strategy.root_device if trainer else split.images.device
        place = (id(split.images), device)
        if place not in self._near and split.images.nbytes <= free_memory(device) / 4:
            self._near[place] = split.images.to(device)
        near = replace(split, images=self._near.get(place, split.images))
        return ArraySource(near, spec, [] if augment == "none" else [basic])


class ArrayDataModule(ImageDataModule[ArraySplit]):
    """Image sets that fit into memory.

    With a GPU, all images are copied to it once if they take at most a quarter of its free memory, and augmented there.
    With the augmentations that take one image at a time they stay where they are.

    Args:
        folds: Divide the images to train and validate on into this many folds, each class in proportion. lit-ft
            finetune then trains a model for each fold, on all others, and measures each image by the model that has not
            seen it. Test images stay apart.
        fold: The fold that is held out, from 1, where one alone is to be trained for.
        **common: The options of every data module.
    """

    sees_whole_images = True
    basic_augment: ShiftFlip
    test_name: str
    """Prefix of the names in `predict_paths`."""

    def __init__(self, folds: int | None = None, fold: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        check_folds(folds, fold)
        self.folds = folds
        self.fold = fold
        self._sources = ArraySources()

    @property
    def predict_paths(self) -> list[str]:
        """The name of each test image, such as ``MNIST/test/17``."""
        return [f"{self.test_name}/{i}" for i in range(len(self.splits[self.tested]))]

    def source(self, split: Split, augment: bool) -> ArraySource:
        """The images of a split; those of ``predict`` are the test images with their index as target."""
        data = self.splits[self.tested].indexed() if split == "predict" else self.splits[split]
        augmentation = self.augment if augment else "none"
        return self._sources.make(data, self.input_spec, self.basic_augment, augmentation, self.trainer)

    def hold_out_val(self, images: ArraySplit, part: float, key: str) -> tuple[ArraySplit, ArraySplit]:
        """The images to train on and to validate on: those of a fold, or so many, where there are no folds.

        Args:
            images: Those of both.
            part: Fraction or number of the images to validate on.
            key: The option that an error names.
        """
        if self.folds is not None:
            return take_fold(images, self.folds, self.fold, self.split_seed, self.class_names)
        kept, held = hold_out(images.targets, part, self.split_seed, key)
        return images.part(kept), images.part(held)

    def with_splits(self, splits: Mapping[Split, ArraySplit]) -> ImageDataModule[ArraySplit]:
        """See `ImageDataModule.with_splits`."""
        other = cast(ArrayDataModule, super().with_splits(splits))
        other._sources = ArraySources()  # by the identity of arrays, which another may have when one is gone
        return other


class HeldOutArrayDataModule(ArrayDataModule):
    """Image sets with an official test set, whose validation images are held out from the training images.

    Args:
        val_fraction: Fraction of the training images held out for validation, of each class in proportion, where
            there are no folds.
        **common: The options of every data module.
    """

    def __init__(self, val_fraction: float = 0.1, **common: Any) -> None:
        super().__init__(**common)
        check_fraction("val_fraction", val_fraction)
        self.val_fraction = val_fraction

    root: Path

    @abstractmethod
    def parse(self) -> Parsed:
        """Reads the files."""

    def is_parsed(self, arrays: dict[str, Tensor], facts: dict[str, Any]) -> bool:
        """Whether these are arrays and facts that `parse` may have given."""
        layout = [(torch.uint8, 4), (torch.int64, 1)] * 2
        if not match_layout(arrays, dict(zip(_NAMES, layout, strict=True))):
            return False
        train, train_targets, test, test_targets = (arrays[name] for name in _NAMES)
        return train.shape[1:] == test.shape[1:] and all(
            len(x) == len(y) > 0 and x.numel() > 0 and 0 <= int(y.min()) <= int(y.max()) < self.num_classes
            for x, y in ((train, train_targets), (test, test_targets))
        )

    def check(self, facts: dict[str, Any]) -> None:
        """Checks the facts at each start, whether the files were parsed in this run or in an earlier one."""

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Parses the files, or maps what an earlier run parsed, and holds the validation images out."""
        of = [_PARSER, [file_stamp(path) for path in map(self.find_file, self.files()) if path is not None]]

        def derive() -> Derived:
            train, test, facts = self.parse()
            return dict(zip(_NAMES, (*train, *test), strict=True)), {**facts, "of": of}

        key = f"{self.test_name} {self.root.absolute()}"
        arrays, facts = load_or_derive(
            "arrays", key, lambda found: found[1].get("of") == of and self.is_parsed(*found), derive
        )
        self.check(facts)
        images, targets, test_images, test_targets = (arrays[name] for name in _NAMES)
        train, test = ArraySplit.whole(images, targets), ArraySplit.whole(test_images, test_targets)
        train, val = self.hold_out_val(train, self.val_fraction, "`data.val_fraction`")
        return {"train": train, "val": val, "test": test}


def basic_shift(images: Tensor) -> ShiftFlip:
    """The basic augmentation of images ``(N, C, H, W)`` that may show anything; grey ones may be letters."""
    return ShiftFlip(max(1, min(images.shape[2:]) // 8), flip=images.shape[1] == 3)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 for any other device, where images need not be copied to."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
