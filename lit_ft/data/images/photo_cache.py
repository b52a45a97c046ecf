"""Resized copies of photos in one file that is mapped into memory: reading, and atomic writing by several processes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from filelock import Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_ft.assets import lock_beside
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.console import format_bytes
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.files.derived_cache import match_layout
from lit_ft.data.files.file_split import FileSplit, PackedPaths, PhotoFiles
from lit_ft.data.images.decode import READ_BY, decode, upright_size
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import sweep, usable_cpus
from lit_ft.errors import UserError, printable


class SplitCaches:
    """The caches of train, val and test of a data module, opened once for each size of the images."""

    def __init__(self) -> None:
        self._opened: tuple[InputSpec, dict[Split, PhotoCache]] | None = None

    def open(
        self, folder: str, splits: Mapping[Split, FileSplit], spec: InputSpec, write: bool, num_workers: int | None
    ) -> dict[Split, PhotoCache]:
        """The cache of each split; where images are not cached as they are now, all are written first.

        The write is atomic. A process that starts while another one writes waits, and then shares the cache. Nothing
        is returned where the images are not cached and ``write`` does not allow it.

        Raises:
            UserError: There is no room or no permission, or an image cannot be read.
        """
        if self._opened is not None and self._opened[0] == spec:
            return self._opened[1]
        names: list[Split] = [name for name in ("train", "val", "test") if name in splits]
        files = [PhotoFiles.of(splits[name].paths) for name in names]
        path = cache_path(Path(folder).expanduser().absolute(), files, spec)
        found = find_cache(path, files)
        if found is None and write:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with _claimed(path.with_name(f".{path.name}")):
                    found = find_cache(path, files)  # written by another process meanwhile
                    if found is None:
                        path.unlink(missing_ok=True)  # it holds no more, and its room may be needed
                        _write(path, files, spec, usable_cpus() if num_workers is None else num_workers)
            except (OSError, NotImplementedError) as error:  # a file system without locks
                raise _unwritable(path.parent, error) from error
            found = found or find_cache(path, files)
        if found is None:
            return {}
        self._opened = spec, dict(zip(names, found, strict=True))
        return self._opened[1]


class PhotoCache:
    """Resized copies of photos, in a file that all processes share.

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
            facts = file.metadata()
        self.made, self._channels = facts["made"], int(facts.get("bands", 3))
        self._kind = torch.float32 if "bands" in facts else torch.uint8
        if made is None and not self._is_whole():
            raise ValueError("its parts do not belong together")
        if made not in (None, self.made):
            raise UserError(f"`data.cache`: {path} was made anew by another run; start this one again")
        self.path = path
        self._stops = (self._sizes.prod(dim=1) * self._channels).cumsum(0)
        self._rows = np.arange(len(self._keys)) if rows is None else rows

    def _is_whole(self) -> bool:
        """Whether its parts belong together."""
        arrays = {"keys": self._keys, "sizes": self._sizes, "pixels": self._pixels}
        return (
            match_layout(arrays, {"keys": (torch.int64, 1), "sizes": (torch.int64, 2), "pixels": (self._kind, 1)})
            and self._sizes.shape == (len(self._keys), 2)
            and len(self._keys) > 0
            and self.made == made_of(self._keys.numpy(), self._sizes.numpy())
            and bool((self._keys.diff() > 0).all())
            and bool((self._sizes > 0).all())
            # In floats, as integers may overflow.
            and float(self._sizes.double().prod(dim=1).sum()) * self._channels == len(self._pixels)
        )

    def __reduce__(self) -> Any:
        """Sends the path to worker processes, rather than all pixels."""
        return PhotoCache, (self.path, self.made, self._rows)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor:
        """An image, uint8 ``(3, H, W)`` or raw ``(C, H, W)``; not to be changed."""
        row = self._rows[index]
        height, width = self._sizes[row].tolist()
        stop, shape = int(self._stops[row]), (height, width, self._channels)
        image: Tensor = self._pixels[stop - math.prod(shape) : stop].view(shape).permute(2, 0, 1)
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
    side = max(spec.resized(1, 1))
    way: list[Any] = [side, spec.interpolation, spec.fit, READ_BY]
    way += [] if spec.bands is None else [spec.bands, spec.channels]
    digest = hashlib.sha256(json.dumps([root, *way]).encode()).hexdigest()
    return folder / f"{os.path.basename(root)}-{side}-{digest[:12]}.safetensors"


def find_cache(path: Path, files: Sequence[PhotoFiles]) -> list[PhotoCache] | None:
    """The images of each list of files, if the cache has all of them as they are now."""
    if not path.is_file():
        return None
    try:
        cache = PhotoCache(path)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return None  # damaged, or of another program: it is made anew
    found = [part for part in map(cache.of, files) if part is not None]
    return found if len(found) == len(files) else None


def stored_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Height and width at which a photo is kept: as it is resized to be evaluated, or as it is if that is smaller.

    >>> stored_size(375, 500, InputSpec()), stored_size(200, 300, InputSpec()), stored_size(1, 5000, InputSpec())
    ((256, 341), (200, 300), (1, 5000))
    """
    resized = spec.resized(height, width)
    return resized if resized[0] * resized[1] < height * width else (height, width)


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Within it no other process writes a file, which is removed at the end unless it was renamed.

    A process that is killed loses its claim, and the next one writes over what it left.
    """
    lock = lock_beside(path.with_name(path.name[1:]))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        taken = printable(str(path.with_name(path.name[1:])))
        print(f"Cache  another process writes {taken}; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _write(path: Path, files: Sequence[PhotoFiles], spec: InputSpec, workers: int) -> None:
    keys, first = np.unique(np.concatenate([part.keys for part in files]), return_index=True)
    names = [name for part in files for name in part.names]
    paths = PackedPaths.pack("", [names[i] for i in first])
    reader = BandReader.of(spec)
    size_of = upright_size if reader is None else reader.size
    sizes = np.array(list(sweep(paths, size_of, "Sizes", workers)), np.int64)
    stored = np.array([stored_size(height, width, spec) for height, width in sizes.tolist()], np.int64)
    lengths = stored.prod(axis=1) * (3 if reader is None else 4 * spec.channels)
    stops = lengths.cumsum()
    head = _head(keys, stored, int(stops[-1]), None if reader is None else spec.channels)
    total = len(head) + int(stops[-1])
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise UserError(f"`data.cache`: needs {format_bytes(total)}, {format_bytes(free)} are free in {path.parent}")
    print(f"Cache  {format_bytes(total)} for {len(paths):,} images: {printable(str(path))}", flush=True)
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        _reserve(file, total)
        file.write(head)
        file.flush()
        resize = spec.geometry().transforms[0]
        copies = _Copies(paths, stored, len(head) + stops - lengths, unfinished, resize, reader)
        for _ in sweep(range(len(paths)), copies, "Cache", workers):
            pass
        os.fsync(file.fileno())
    unfinished.replace(path)


def _head(keys: NDArray[np.int64], stored: NDArray[np.int64], num_bytes: int, bands: int | None) -> bytes:
    """All but the pixels, as safetensors has it: it could write only what fits into memory."""
    first, second = keys.nbytes, keys.nbytes + stored.nbytes
    kind, count = ("U8", num_bytes) if bands is None else ("F32", num_bytes // 4)
    entries = {
        "__metadata__": {"made": made_of(keys, stored), **({} if bands is None else {"bands": str(bands)})},
        "keys": {"dtype": "I64", "shape": keys.shape, "data_offsets": [0, first]},
        "sizes": {"dtype": "I64", "shape": stored.shape, "data_offsets": [first, second]},
        "pixels": {"dtype": kind, "shape": [count], "data_offsets": [second, second + num_bytes]},
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + keys.tobytes() + stored.tobytes()


def _reserve(file: BinaryIO, size: int) -> None:
    """Takes the room at once, so that a full disk shows before the work is done."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


@dataclass
class _Copies:
    """Writes resized images, by their number, each to its place."""

    paths: PackedPaths
    sizes: NDArray[np.int64]
    starts: NDArray[np.int64]
    file: Path
    resize: Callable[[Tensor], Tensor]
    reader: BandReader | None

    def __call__(self, i: int) -> None:
        try:
            # Not through a map of the file: a disk that is full would then kill the process.
            with self.file.open("r+b") as file:
                file.seek(int(self.starts[i]))
                file.write(self._copy(i))
        except OSError as error:
            raise _unwritable(self.file.parent, error) from error

    def _copy(self, i: int) -> memoryview:
        size = tuple(self.sizes[i].tolist())
        image = decode(self.paths[i]) if self.reader is None else self.reader(self.paths[i])
        if image.shape[1:] != size:
            image = self.resize(image)
        if image.shape[1:] != size:
            raise UserError(f"{self.paths[i]}: its header has another size than its pixels; fix or remove it")
        return image.permute(1, 2, 0).contiguous().numpy().data.cast("B")


def _unwritable(folder: Path, error: Exception) -> UserError:
    return UserError(f"`data.cache`: {folder} cannot be written ({getattr(error, 'strerror', None) or error})")
