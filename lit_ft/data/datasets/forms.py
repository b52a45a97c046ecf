"""What a data set of torch holds, in the fastest form that it can be read in: files, arrays, or single items."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import ImageFile
from torch import Tensor
from torchvision.datasets.folder import default_loader

from lit_ft.console import progress_bar
from lit_ft.data.arrays.pixels import channels_first, order_channels
from lit_ft.data.arrays.targets import Values
from lit_ft.data.datasets.classes import KEY, DatasetClass
from lit_ft.data.datasets.items import Items, ItemSplit, Reader, plain_value, stack_values
from lit_ft.data.files.derived_cache import Derived, file_stamp, load_or_derive
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import sweep
from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn

Images = tuple[PackedPaths | Tensor | Reader, Values | None]
"""The images of a split, and their targets, if they have any."""

_TARGETS = ("targets", "labels", "y", "attr")
_NAMES = ("classes", "categories", "class_names", "attr_names")
_LOOKED_AT = 8
"""Items that are read to see whether what a data set has as a whole is what it gives one by one."""


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


def read_dataset(
    cls: DatasetClass, arguments: Mapping[str, Any], by_split: Mapping[Split, Mapping[str, Any]] | None
) -> tuple[dict[Split, Found], list[str] | None]:
    """The images of each split, in the same form, and the names of the classes, where the data set has them.

    Splits without targets are left out, with a warning. The arguments are those of `DatasetClass.make_splits`.

    Raises:
        UserError: A data set cannot be made or read, or has no images.
    """

    def make_readers(**further: Any) -> dict[Split, Reader]:
        made = cls.make_splits({**arguments, **further}, by_split)
        return {split: Reader(one, f"{cls.name} ({split})", cls.packages) for split, one in made.items()}

    readers = make_readers(loader=keep_path) if takes_paths(cls) else make_readers()
    for reader in readers.values():
        if not len(reader):
            raise UserError(f"{KEY}: {reader.what} has no images")
    names = {split: find_class_names(reader.dataset) for split, reader in readers.items()}
    files = {split: read_files(reader) for split, reader in readers.items()}
    if all(one is not None for one in files.values()):
        found: dict[Split, Images] = {split: one for split, one in files.items() if one is not None}
    else:
        readers = make_readers() if takes_paths(cls) else readers
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


def keep_path(path: Any) -> Any:
    """A loader that loads nothing: the item of a data set then has the path of its image."""
    return path


def takes_paths(cls: DatasetClass) -> bool:
    """Whether a class has photos loaded by torchvision's loader, which another may stand in for."""
    loader = cls.parameters.get("loader")
    return loader is not None and loader.default in (default_loader, None, loader.empty)


def read_files(reader: Reader) -> tuple[PackedPaths, Values | None] | None:
    """The file and the target of each item, as far as images are unchanged files; None where they are not."""
    paths: list[str] = []
    values: list[Any] = []
    if _path_of(reader.read(0)[0]) is None:
        return None
    with progress_bar(f"listing {reader.what}", len(reader), delay=1.0) as bar:
        for index in range(len(reader)):
            image, target = reader.read(index)
            path = _path_of(image)
            if path is None:
                return None
            paths.append(path)
            values.append(plain_value(target))
            bar.update(1)
    return _pack_paths(paths), stack_values(values, reader.what)


def read_arrays(reader: Reader) -> Tensor | None:
    """All images, uint8 ``(N, C, H, W)``, of a data set that has them in memory, as its items are."""
    data = getattr(reader.dataset, "data", None)
    data = data.numpy() if isinstance(data, Tensor) else data
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or len(data) != len(reader):
        return None
    try:
        channels_first(data.shape, "", "")
    except UserError:
        return None
    images = torch.from_numpy(np.ascontiguousarray(order_channels(data)))
    same = (reader.to_photo(reader.read(i)[0], i).equal(images[i].expand(3, -1, -1)) for i in _some(len(reader)))
    return images if all(same) else None


def read_targets(reader: Reader, key: Any, source: str | None) -> Values | None:
    """The targets of all items; None where there are none. What takes reading all images is kept between runs.

    Args:
        reader: Reads the items.
        key: By what the data set is made.
        source: The file of its class.
    """
    if (found := _public_targets(reader)) is not None:
        return found
    some = _some(len(reader))
    seen = stack_values([reader.read_value(i) for i in some], reader.what)
    if seen is None:
        return None
    of = [len(reader), file_stamp(source) if source else None]

    def is_valid(found: Derived) -> bool:
        if found[1].get("of") != of or not _is_packed(found, len(reader)):
            return False
        return np.array_equal(_unpack(found)[some], seen)

    def derive() -> Derived:
        values = list(sweep(range(len(reader)), reader.read_value, f"reading the labels of {reader.what}"))
        return _pack(stack_values(values, reader.what), of)

    return _unpack(load_or_derive("targets", json.dumps(key, sort_keys=True, default=str), is_valid, derive))


def find_class_names(dataset: Any) -> list[str] | None:
    """The names of the classes by their number, where a data set has them by one of the usual names."""
    for name in _NAMES:
        found = getattr(dataset, name, None)
        if isinstance(found, (list, tuple)) and found and all(isinstance(one, (str, tuple, list)) for one in found):
            return _distinct([one if isinstance(one, str) else ", ".join(map(str, one)) for one in found])
    numbers = getattr(dataset, "class_to_idx", None)
    if isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        return sorted(map(str, numbers), key={str(name): number for name, number in numbers.items()}.__getitem__)
    return None


def source_file(cls: DatasetClass) -> str | None:
    """The file of a class, whose change may change what its items are."""
    try:
        return inspect.getsourcefile(cls.made_by)
    except TypeError:  # of no file
        return None


def _pack_paths(paths: Sequence[str]) -> PackedPaths:
    """Paths from the folder that all lie in."""
    full = [os.path.abspath(path) for path in paths]
    try:
        root = os.path.commonpath({os.path.dirname(path) for path in full})
    except ValueError:  # on several drives
        return PackedPaths.pack("", full)
    return PackedPaths.pack(root, [path[len(root) :].lstrip(os.sep) for path in full])


def _path_of(image: Any) -> str | None:
    """The file of an image that is its path, or that Pillow has opened and not yet read."""
    if isinstance(image, ImageFile.ImageFile):
        name = image.filename if image.tile else ""
        image.close()
        return os.fsdecode(name) if name else None
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def _public_targets(reader: Reader) -> Values | None:
    """The targets that a data set has as an attribute, if they are those of its items."""
    for name in _TARGETS:
        found = getattr(reader.dataset, name, None)
        if not isinstance(found, (list, tuple, np.ndarray, Tensor)) or len(found) != len(reader):
            continue
        try:
            values = np.asarray(plain_value(found))
        except ValueError:  # of several lengths
            continue
        if values.dtype.kind not in "biufSU":
            continue
        read = ((np.asarray(plain_value(reader.read(i)[1])), values[i]) for i in _some(len(reader)))
        if all(np.array_equal(one, other) for one, other in read):
            return values
    return None


def _some(num: int) -> list[int]:
    """Some rows, the first and the last among them."""
    return sorted({int(row) for row in np.linspace(0, num - 1, min(num, _LOOKED_AT))})


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, of which those that are there several times have their number; without an empty one at the end."""
    names = list(names[:-1] if names and not names[-1] else names)
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def _pack(values: Values | None, of: Any) -> Derived:
    values = np.zeros(0) if values is None else values
    if values.dtype.kind not in "SU":
        return {"values": torch.from_numpy(np.ascontiguousarray(values))}, {"of": of, "names": None}
    names, numbers = np.unique(values.astype(str), return_inverse=True)
    return {"values": torch.from_numpy(numbers.reshape(values.shape))}, {"of": of, "names": names.tolist()}


def _is_packed(found: Derived, num: int) -> bool:
    """Whether arrays and facts may be those of `_pack`, for so many items."""
    values, names = found[0].get("values"), found[1].get("names")
    if found[0].keys() != {"values"} or values is None or len(values) != num:
        return False
    return names is None or (isinstance(names, list) and values.dtype == torch.int64 and int(values.max()) < len(names))


def _unpack(found: Derived) -> Values:
    values, names = found[0]["values"].numpy(), found[1]["names"]
    return values if names is None else np.array(names)[values]
