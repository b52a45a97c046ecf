"""The splits of a data set of torch with their targets and the names of their classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_ft.data.arrays.targets import LabelArray, Labels, Values
from lit_ft.data.datasets.classes import KEY, DatasetClass
from lit_ft.data.datasets.forms import keep_path, read_arrays, read_files, read_targets, source_file, takes_paths
from lit_ft.data.datasets.items import Items, ItemSplit, Reader
from lit_ft.data.datasets.splits import SplitArguments, make_splits
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.tasks.task import TaskName

_NAMES = ("classes", "categories", "class_names", "attr_names")
Images = tuple[PackedPaths | Tensor | Reader, Values | None]
"""The images of a split, and their targets, if they have any."""


@dataclass(frozen=True)
class Found:
    """The images and the targets of one split.

    Args:
        images: Their files; or all images, uint8 ``(N, C, H, W)``; or what reads them item by item.
        values: Their targets, as the data set has them.
        what: What they are called in a message.
        labels: What these mean in all splits alike: class numbers, names of classes, or other targets.
    """

    images: PackedPaths | Tensor | Reader
    values: Values
    what: str
    labels: Values

    def split(self, targets: Tensor) -> FileSplit | ArraySplit | ItemSplit:
        """The split of these images with their targets."""
        if isinstance(self.images, PackedPaths):
            return FileSplit(self.images, targets)
        if isinstance(self.images, Tensor):
            return ArraySplit.whole(self.images, targets)
        return ItemSplit(Items(self.images, self.values), self.what, torch.arange(len(targets)), targets)


def read_labelled(
    cls: DatasetClass,
    arguments: Mapping[str, Any],
    by_split: SplitArguments | None,
    task: TaskName,
    classes: Sequence[str] | None = None,
) -> tuple[list[str], dict[Split, Any]]:
    """The names of the classes, and the splits that a data set has, all in the same form.

    Args:
        cls: The class of the data set.
        arguments: What all splits are made with.
        by_split: What each is made with, too; see `make_splits`.
        task: The task of the targets.
        classes: The names of the classes; when not given, those of the data set.

    Raises:
        UserError: It cannot be made or read, or its targets are not of the task.
    """
    found, names = _find_splits(cls, arguments, by_split)
    if "train" not in found:
        raise UserError(f"{KEY}: the training images of {cls.name} have no targets")
    arrays = {split: LabelArray(one.labels, one.what, KEY) for split, one in found.items()}
    if classes:
        labels = Labels(arrays, classes)
    else:
        labels = Labels(arrays, names, f"{KEY}: {cls.name}").with_fitting_names(task)
    class_names, targets = labels.to_targets(task)
    return class_names, {split: one.split(targets[split]) for split, one in found.items()}


def _find_splits(
    cls: DatasetClass, arguments: Mapping[str, Any], by_split: SplitArguments | None
) -> tuple[dict[Split, Found], list[str] | None]:
    """The images and targets of each split, and the names of the classes, where the data set has them.

    Splits without targets are left out, with a warning.
    """

    def make_readers(**further: Any) -> dict[Split, Reader]:
        made = make_splits(cls, {**arguments, **further}, by_split)
        return {split: Reader(one, cls.path, split) for split, one in made.items()}

    readers, found = _find_files(make_readers, takes_paths(cls))
    names = {split: find_class_names(reader.attribute) for split, reader in readers.items()}
    if found is None:
        key = [cls.path, os.path.abspath(arguments.get("root", "")), dict(arguments), by_split]
        found = _read_items(readers, key, source_file(cls))
    labelled = {}
    for split, (images, values) in found.items():
        if values is None:
            rank_zero_warn(f"{KEY}: {readers[split].what} has no targets, so it is not used")
        else:
            labelled[split] = Found(images, values, readers[split].what, values)
    # Each split may number just the classes that it has.
    if len({tuple(own) for split in labelled if (own := names[split])}) > 1:
        named = {split: _name_classes(one.values, names[split]) for split, one in labelled.items()}
        labelled = {split: replace(labelled[split], labels=one) for split, one in named.items() if one is not None}
        if len(labelled) < len(named):
            raise UserError(f"{KEY}: the splits of {cls.name} have other classes, by their names, than one another")
    return labelled, names["train"]


def _find_files(
    make_readers: Callable[..., dict[Split, Reader]], takes_loader: bool
) -> tuple[dict[Split, Reader], dict[Split, Images] | None]:
    """The readers of the splits, and the images of each where all are in files.

    Args:
        make_readers: Makes the readers.
        takes_loader: Whether it takes a loader in the place of torchvision's.
    """
    try:
        readers = make_readers(loader=keep_path) if takes_loader else make_readers()
        for reader in readers.values():
            if not len(reader):
                raise UserError(f"{KEY}: {reader.what} has no images")
        files = {split: read_files(reader) for split, reader in readers.items()}
    except UserCodeError:
        if not takes_loader:
            raise
        files = {}  # of paths alone it may fail, as where it does more with an image than to load it
    if files and all(one is not None for one in files.values()):
        return readers, {split: one for split, one in files.items() if one is not None}
    return make_readers() if takes_loader else readers, None


def _name_classes(values: Values, names: Sequence[str] | None) -> Values | None:
    """The names of the classes of images, where all of them have one."""
    if values.dtype.kind in "SU":
        return values
    fits = names is not None and values.ndim == 1 and values.dtype.kind in "iu" and values.min() >= 0
    return np.array(names)[values] if fits and values.max() < len(names or ()) else None


def _read_items(readers: Mapping[Split, Reader], key: Sequence[Any], source: str | None) -> dict[Split, Images]:
    """The images of each split in memory, where all are, or else what reads them; and their targets."""
    values = {split: read_targets(reader, [*key, split], source) for split, reader in readers.items()}
    arrays = {split: read_arrays(reader) for split, reader in readers.items()}
    if any(images is None for images in arrays.values()):
        return {split: (reader, values[split]) for split, reader in readers.items()}
    return {split: (images, values[split]) for split, images in arrays.items() if images is not None}


def find_class_names(attribute: Callable[[str], Any]) -> list[str] | None:
    """The names of the classes by their number, where a data set has them by one of the usual names.

    Args:
        attribute: Gives an attribute of the data set, or None.
    """
    for name in _NAMES:
        found = attribute(name)
        if isinstance(found, (list, tuple)) and found and all(isinstance(one, (str, tuple, list)) for one in found):
            return _distinct([one if isinstance(one, str) else ", ".join(map(str, one)) for one in found])
    numbers = attribute("class_to_idx")
    if isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        return sorted(map(str, numbers), key={str(name): number for name, number in numbers.items()}.__getitem__)
    return None


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, of which those that are there several times have their number; without an empty one at the end."""
    names = list(names[:-1] if names and not names[-1] else names)
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
