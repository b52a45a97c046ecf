"""Data module of images and labels in files of arrays: `.npz`, `.npy` and IDX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_ft.console import format_path
from lit_ft.data.arrays.files import KEY, StoredArray, list_arrays
from lit_ft.data.arrays.names import pair_arrays, read_name
from lit_ft.data.arrays.pixels import channels_first, order_channels, refuse_type, to_bytes
from lit_ft.data.arrays.targets import LabelArray, Labels
from lit_ft.data.files.derived_cache import Derived, file_stamp, load_or_derive, match_layout
from lit_ft.data.files.folders import find_path
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit, basic_shift
from lit_ft.data.modules.held_out import TEST_ADVICE, HeldOutFractions
from lit_ft.data.modules.options import check_choice
from lit_ft.errors import UserError
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.tasks.task import TaskName

_NAME_FILES = ("classes.txt", "class_names.txt", "labels.txt")
_SCALING = 1
"""Version of the images made of arrays; to be raised when they are made in another way."""


class ImageArrayDataModule(ArrayDataModule):
    """Images and labels in arrays: a ``.npz`` file, or a folder with ``.npz``, ``.npy`` or IDX files.

    Images are uint8, or float from 0 to 1: ``(N, H, W)`` for grey ones, ``(N, H, W, C)`` or ``(N, C, H, W)``. Arrays
    are found by their names, such as ``x_train`` and ``y_train``, ``train_images`` and ``train_labels``, or
    ``train-images-idx3-ubyte.gz``. Splits without arrays are held out from the training images, stratified by class.

    Args:
        root: The file or folder; when not given, ``data``. A relative one may also lie in the folder that the
            environment variable LIT_FT_DATA names.
        train: The names of the arrays of images and of labels to train on, where they are called otherwise; in a
            folder, those of the files without suffix.
        val: Likewise for validation.
        test: Likewise for test.
        classes: The names of the classes by their number, or of the columns of labels. When not given, those in an
            array ``class_names``, or in the lines of a file ``classes.txt`` beside, or else the labels themselves.
        task: The task of the labels. When not given, the model's task.
        val_fraction: Fraction of the images held out for validation, where no validation split is given.
        test_fraction: Fraction of the images held out for test, where no test split is given. With 0 the validation
            images are tested on, with a warning.
        augment: ``basic`` shifts by up to an eighth of the side, and mirrors half of the images if they are in colour:
            grey ones may be letters. ``trivial`` moves by up to 32 pixels, which leaves some small images black.
        **common: The options of every data module.
    """

    test_advice = TEST_ADVICE

    def __init__(
        self,
        root: str = "data",
        train: list[str] | None = None,
        val: list[str] | None = None,
        test: list[str] | None = None,
        classes: list[str] | None = None,
        task: TaskName | None = None,
        val_fraction: float = 0.2,
        test_fraction: float = 0.0,
        augment: Augment = "basic",
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        self.task = "multiclass" if task is None else task
        check_choice("task", self.task, list(MAIN_METRIC))
        self.held_out = HeldOutFractions(val_fraction, test_fraction, self.folds, self.fold)
        named: dict[Split, list[str] | None] = {"train": train, "val": val, "test": test}
        self.pairs = {split: pair for split, pair in named.items() if pair is not None}
        if self.pairs and train is None:
            raise UserError(f"`data.train`: is missing, and `data.{next(iter(self.pairs))}` is given; give both")
        self.root = root
        self.classes = classes

    @property
    def class_names(self) -> list[str]:
        """The classes or labels in order, or the columns of numbers."""
        return list(self._content[0])

    @property
    def test_name(self) -> str:  # type: ignore[override]
        """The name of the file or folder, and the split that is tested on."""
        return f"{Path(self.root).stem}/{self.tested}"

    @property
    def basic_augment(self) -> ShiftFlip:  # type: ignore[override]
        """By the side and the channels of the images."""
        return basic_shift(self.splits["train"].images)

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Finds the arrays, and holds out what is not given."""
        names, given = self._content
        return self.held_out.apply(given, self.split_seed, names)

    @cached_property
    def _content(self) -> tuple[list[str], dict[Split, ArraySplit]]:
        """The names of the classes, and the splits that are given."""
        root = find_path(self.root, KEY)
        arrays = list_arrays(root)
        described = {name: f"{name} {array.shape}" for name, array in arrays.items()}
        pairs = pair_arrays(arrays, self.pairs, described, str(format_path(root)))
        _refuse_swapped(arrays, pairs, described)
        images = {split: arrays[one] for split, (one, _) in pairs.items()}
        _check_shapes(images, {split: arrays[other] for split, (_, other) in pairs.items()})
        labels = {
            split: LabelArray(arrays[other].read(), str(arrays[other]), KEY) for split, (_, other) in pairs.items()
        }
        others = {name: array for name, array in arrays.items() if not any(name in pair for pair in pairs.values())}
        names, key = _find_names(root, others, labels["train"]) if self.classes is None else (self.classes, None)
        class_names, targets = Labels(labels, names, key or "`data.classes`").to_targets(self.task)
        return class_names, {split: ArraySplit.whole(read_images(images[split]), targets[split]) for split in pairs}


def read_images(array: StoredArray) -> Tensor:
    """The images of an array, uint8 ``(N, C, H, W)``: mapped where they lie, or else from what an earlier run unpacked.

    Raises:
        UserError: They cannot be read, or are of another kind.
    """
    shape = channels_first(array.shape, KEY, str(array))
    refuse_type(array.dtype, KEY, str(array))
    if array.is_mapped and array.dtype == np.uint8:
        return torch.from_numpy(order_channels(array.read()))
    of = [_SCALING, file_stamp(array.path)]

    def is_valid(found: Derived) -> bool:
        images = found[0].get("images")
        is_ours = found[1].get("of") == of and match_layout(found[0], {"images": (torch.uint8, 4)})
        return is_ours and images is not None and tuple(images.shape) == shape

    def derive() -> Derived:
        return {"images": to_bytes(order_channels(array.read()), KEY, str(array))}, {"of": of}

    return load_or_derive("images", f"{array.path.absolute()} {array.member}", is_valid, derive)[0]["images"]


def _refuse_swapped(
    arrays: Mapping[str, StoredArray], pairs: Mapping[Split, tuple[str, str]], described: Mapping[str, str]
) -> None:
    """Raises `UserError` where the images of a split have the shape of labels, and its labels that of images."""
    for split, (one, other) in pairs.items():
        if len(arrays[one].shape) < 3 <= len(arrays[other].shape):
            raise UserError(
                f"{KEY}: {arrays[one]} {arrays[one].shape} looks like labels, and {described[other]} like images; name "
                f"them the other way round: `data.{split}` [{other},{one}]"
            )


def _check_shapes(images: Mapping[Split, StoredArray], labels: Mapping[Split, StoredArray]) -> None:
    """Raises `UserError` for labels that are not one for each image, and splits whose images differ in size."""
    shapes = {split: channels_first(array.shape, KEY, str(array)) for split, array in images.items()}
    for split, shape in shapes.items():
        num = labels[split].shape[:1]
        if num != shape[:1]:
            images[split].read()  # which raises where its header announces more than there is
            raise UserError(f"{KEY}: {labels[split]} has {num[0] if num else 1} labels for the {shape[0]} images of "
                            f"{images[split]}; there must be one for each")  # fmt: skip
        if shape[1:] != shapes["train"][1:]:
            first, other = (" x ".join(map(str, one[1:])) for one in (shapes["train"], shape))
            raise UserError(f"{KEY}: images of {images[split]} are {other}, and those of {images['train']} {first}")


def _find_names(
    root: Path, arrays: Mapping[str, StoredArray], train: LabelArray
) -> tuple[Sequence[str] | None, str | None]:
    """The names of the classes in an array or a file beside, and where they are; nothing where there are none."""
    for name, array in arrays.items():
        if read_name(name)[1] == "classes" and (array.dtype.kind in "SU" or array.dtype.hasobject):
            names = LabelArray(array.read().ravel(), str(array), KEY).classes()
            return names.tolist(), f"{KEY}: {array}"
    if train.values.dtype.kind in "SU":
        return None, None
    folder = root.parent if root.is_file() else root
    for path in (folder / name for name in _NAME_FILES):
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                raise UserError(f"{KEY}: {format_path(path)} cannot be read as the names of the classes") from error
            return [line.strip() for line in lines if line.strip()], f"`data.classes`: {format_path(path)}"
    return None, None
