"""Resized copies of photos in one file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.files.derived_cache import file_stamp_number, match_layout
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.errors import UserError


@dataclass(frozen=True)
class PhotoFiles:
    """Files, with a number that changes when they do.

    Args:
        names: Absolute path of each, ``N`` of them.
        keys: A number for each that stands for its path, size and time of the last change, int64 ``(N,)``.
    """

    names: list[str]
    keys: NDArray[np.int64]

    @classmethod
    def of(cls, paths: PackedPaths) -> PhotoFiles:
        """Looks at every file.

        Raises:
            UserError: One is gone.
        """
        names = list(paths.absolute())
        keys = np.empty(len(names), np.int64)
        for i, name in enumerate(names):
            try:
                keys[i] = file_stamp_number(name)
            except OSError as error:
                raise UserError(f"{name}: cannot be read ({error.strerror})") from error
        return cls(names, keys)


class PhotoCache:
    """Resized copies of photos in a file that is mapped into memory, so that all processes share it.

    A copy is what the eval transform resizes the photo to, or the photo itself where that has fewer pixels: evaluation
    gets the same pixels as without a cache. A random crop is cut from the copy, and so may be a little less sharp.

    Args:
        path: The file.
        made: Its hash, by which a file that replaced it is found; when not given, the file is checked instead.
        rows: Which of its images these are, int64 ``(N,)``; all when not given.

    Raises:
        UserError: It is another one.
        ValueError: It is no cache of photos.
    """

    def __init__(self, path: Path, made: str | None = None, rows: NDArray[np.int64] | None = None) -> None:
        with safe_open(path, "pt") as file:  # its tensors are mapped, and read when they are used
            self._keys, self._sizes, self._pixels = (file.get_tensor(name) for name in ("keys", "sizes", "pixels"))
            self.made = file.metadata()["made"]
        if made is None:
            self._check()
        if made not in (None, self.made):
            raise UserError(f"`data.cache`: {path} was made anew by another run; start this one again")
        self.path = path
        self._stops = (self._sizes.prod(dim=1) * 3).cumsum(0)
        self._rows = np.arange(len(self._keys)) if rows is None else rows

    def _check(self) -> None:
        arrays = {"keys": self._keys, "sizes": self._sizes, "pixels": self._pixels}
        fits = (
            match_layout(arrays, {"keys": (torch.int64, 1), "sizes": (torch.int64, 2), "pixels": (torch.uint8, 1)})
            and self._sizes.shape == (len(self._keys), 2)
            and len(self._keys) > 0
            and self.made == made_of(self._keys.numpy(), self._sizes.numpy())
            and bool((self._keys.diff() > 0).all())
            and bool((self._sizes > 0).all())
            # In floats, as integers may overflow.
            and float(self._sizes.double().prod(dim=1).sum()) * 3 == len(self._pixels)
        )
        if not fits:
            raise ValueError("its parts do not belong together")

    def __reduce__(self) -> Any:
        """Sends the path to worker processes, rather than all pixels."""
        return PhotoCache, (self.path, self.made, self._rows)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        """An image, uint8 ``(3, H, W)``; not to be changed."""
        row = self._rows[index]
        height, width = self._sizes[row].tolist()
        stop = int(self._stops[row])
        image: Tensor = self._pixels[stop - height * width * 3 : stop].view(height, width, 3).permute(2, 0, 1)
        return image

    def of(self, files: PhotoFiles) -> PhotoCache | None:
        """The images of these files, in their order; nothing where one is missing or has changed."""
        keys = self._keys.numpy()  # ascending
        rows = np.searchsorted(keys, files.keys).clip(max=len(keys) - 1)
        if not np.array_equal(keys[rows], files.keys):
            return None
        return PhotoCache(self.path, self.made, rows)


def made_of(keys: NDArray[np.int64], sizes: NDArray[np.int64]) -> str:
    """Hash of a cache: of its keys ``(N,)`` and sizes ``(N, 2)``."""
    return hashlib.sha256(keys.tobytes() + sizes.tobytes()).hexdigest()


def cache_path(folder: Path, files: Sequence[PhotoFiles], spec: InputSpec) -> Path:
    """Where the cache of a set of photos is: one file for each set, and each way of resizing.

    Versions count as ways of resizing: the same pixels cannot be promised across them.
    """
    names = [name for part in files for name in (min(part.names), max(part.names))]
    root = os.path.commonpath(names)
    way = [spec.resize, spec.interpolation, spec.squash, PIL.__version__, torch.__version__, torchvision.__version__]
    digest = hashlib.sha256(json.dumps([root, *way]).encode()).hexdigest()
    return folder / f"{os.path.basename(root)}-{spec.resize}-{digest[:12]}.safetensors"


def find_cache(path: Path, files: Sequence[PhotoFiles]) -> list[PhotoCache] | None:
    """The images of each list of files, if the cache has all of them as they are now."""
    if not path.is_file():
        return None
    try:
        cache = PhotoCache(path)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None  # damaged, or of another program: it is made anew
    found = [cache.of(part) for part in files]
    return None if None in found else [part for part in found if part is not None]


def stored_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Height and width at which a photo is kept: as it is resized to be evaluated, or as it is if that is smaller.

    >>> stored_size(375, 500, InputSpec()), stored_size(200, 300, InputSpec()), stored_size(1, 5000, InputSpec())
    ((256, 341), (200, 300), (1, 5000))
    """
    side = spec.resize
    if spec.squash:
        resized = (side, side)
    else:
        resized = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    return resized if resized[0] * resized[1] < height * width else (height, width)
