"""What a data set of torch holds, in the fastest form that it can be read in: files, arrays, or single items."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import ImageFile
from torch import Tensor
from torchvision.datasets.folder import default_loader

from lit_ft.console import progress_bar
from lit_ft.data.arrays.pixels import channels_first, order_channels
from lit_ft.data.arrays.targets import Values
from lit_ft.data.datasets.classes import DatasetClass
from lit_ft.data.datasets.items import Reader, plain_value, stack_values
from lit_ft.data.files.derived_cache import Derived, file_stamp, load_or_derive
from lit_ft.data.files.file_split import PackedPaths
from lit_ft.data.loading.workers import sweep
from lit_ft.errors import UserError

_TARGETS = ("targets", "labels", "y", "attr")
_LOOKED_AT = 8
"""Items that are read to see whether what a data set has as a whole is what it gives one by one."""


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
            values.append(reader.to_value(target, index))
            bar.update(1)
    return _pack_paths(paths), stack_values(values, reader.what)


def read_arrays(reader: Reader) -> Tensor | None:
    """All images, uint8 ``(N, C, H, W)``, of a data set that has them in memory, as its items are."""
    data = reader.attribute("data")
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
        source: The file of its class; nothing is kept without one, as a change of the labels would not show.
    """
    if (found := _public_targets(reader)) is not None:
        return found
    some = _some(len(reader))
    seen = stack_values([reader.read_value(i) for i in some], reader.what)
    if seen is None:
        return None

    def read_all() -> Values | None:
        values = list(sweep(range(len(reader)), reader.read_value, f"reading the labels of {reader.what}"))
        return stack_values(values, reader.what)

    if source is None:
        return read_all()
    of = [len(reader), file_stamp(source)]

    def is_valid(found: Derived) -> bool:
        if found[1].get("of") != of or not _is_packed(found, len(reader)):
            return False
        return np.array_equal(_unpack(found)[some], seen)

    def derive() -> Derived:
        return _pack(read_all(), of)

    return _unpack(load_or_derive("targets", json.dumps(key, sort_keys=True, default=str), is_valid, derive))


def source_file(cls: DatasetClass) -> str | None:
    """The file of a class of torchvision, whose change may change what its items are.

    None of one's own, which may take its labels from anywhere, such as a table that is corrected.
    """
    return None if cls.is_own else inspect.getsourcefile(cls.made_by)


def _pack_paths(paths: Sequence[str]) -> PackedPaths:
    """Paths from the folder that all lie in."""
    full = [os.path.abspath(path) for path in paths]
    try:
        root = os.path.commonpath({os.path.dirname(path) for path in full})
    except ValueError:  # on several drives
        return PackedPaths.pack("", full)
    return PackedPaths.pack(root, [path[len(root) :].lstrip(os.sep) for path in full])


def _path_of(image: Any) -> str | None:
    """The file of an image that is its path, or that Pillow has opened, at its first frame, and not yet read."""
    if isinstance(image, ImageFile.ImageFile):
        name = image.filename if image.tile and image.tell() == 0 else ""
        image.close()
        return os.fsdecode(name) if name else None
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def _public_targets(reader: Reader) -> Values | None:
    """The targets that a data set has as an attribute, if they are those of its items."""
    for name in _TARGETS:
        found = reader.attribute(name)
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
