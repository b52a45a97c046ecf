"""Atomic writing of resized copies of photos, by several processes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.console import format_bytes
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.data.images.decode import decode, upright_size
from lit_ft.data.images.photo_cache import PhotoCache, PhotoFiles, cache_path, find_cache, made_of, stored_size
from lit_ft.data.loading.workers import sweep
from lit_ft.errors import UserError, printable


def open_photo_cache(
    folder: str, files: Sequence[PhotoFiles], spec: InputSpec, write: bool, workers: int
) -> list[PhotoCache] | None:
    """The cached images of each list of files; where they are not cached as they are now, all are written first.

    The write is atomic. A process that starts while another one writes waits, and then shares the cache.

    Args:
        folder: The folder of the cache.
        files: The photos of each split.
        spec: How photos are resized.
        write: Whether it may be written.
        workers: Number of processes that do so; 0 for none but this one.

    Returns:
        The images of each list; nothing where they are not cached and may not be.

    Raises:
        UserError: There is no room or no permission, or an image cannot be read.
    """
    path = cache_path(Path(folder).expanduser().absolute(), files, spec)
    found = find_cache(path, files)
    if found is not None or not write:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(path.with_name(f".{path.name}")):
            found = find_cache(path, files)  # written by another process meanwhile
            if found is None:
                path.unlink(missing_ok=True)  # it holds no more, and its room may be needed
                _write(path, files, spec, workers)
    except (OSError, NotImplementedError) as error:  # a file system without locks
        raise _unwritable(path.parent, error) from error
    return found or find_cache(path, files)


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    """Within it no other process writes a file, which is removed at the end unless it was renamed.

    A process that is killed loses its claim, and the next one writes over what it left.
    """
    # A file of its own, which stays: a file that is locked cannot be renamed on Windows. Others may lock it, too.
    lock = FileLock(path.with_name(f"{path.name}.lock"), mode=0o666)
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
    sizes = np.array(list(sweep(paths, upright_size, "Sizes", workers)), np.int64)
    stored = np.array([stored_size(height, width, spec) for height, width in sizes.tolist()], np.int64)
    stops = (stored.prod(axis=1) * 3).cumsum()
    head = _head(keys, stored, int(stops[-1]))
    total = len(head) + int(stops[-1])
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise UserError(f"`data.cache`: needs {format_bytes(total)}, {format_bytes(free)} are free in {path.parent}")
    print(f"Cache  {format_bytes(total)} for {len(paths):,} images: {printable(str(path))}", flush=True)
    starts = len(head) + np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        _reserve(file, total)
        file.write(head)
        file.flush()
        copies = _Copies(paths, stored, starts, unfinished, spec)
        for _ in sweep(range(len(paths)), copies, "Cache", workers):
            pass
        os.fsync(file.fileno())
    unfinished.replace(path)


def _head(keys: NDArray[np.int64], stored: NDArray[np.int64], pixels: int) -> bytes:
    """All but the pixels, as safetensors has it: it could write only what fits into memory."""
    arrays = {"keys": keys, "sizes": stored}
    entries: dict[str, Any] = {}
    at = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": "I64", "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    entries["pixels"] = {"dtype": "U8", "shape": [pixels], "data_offsets": [at, at + pixels]}
    text = json.dumps({"__metadata__": {"made": made_of(keys, stored)}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values())


def _reserve(file: BinaryIO, size: int) -> None:
    """Takes the room at once, so that a full disk shows before the work is done."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


class _Copies:
    """Writes resized images, by their number, each to its place."""

    def __init__(
        self, paths: PackedPaths, sizes: NDArray[np.int64], starts: NDArray[np.int64], file: Path, spec: InputSpec
    ) -> None:
        self.paths, self.sizes, self.starts = paths, sizes, starts
        self.file = file
        self.resize = spec.geometry().transforms[0]

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
        image = decode(self.paths[i])
        if image.shape[1:] != size:
            image = self.resize(image)
        if image.shape[1:] != size:
            raise UserError(f"{self.paths[i]}: its header has another size than its pixels; fix or remove it")
        return image.permute(1, 2, 0).contiguous().numpy().data


def _unwritable(folder: Path, error: Exception) -> UserError:
    return UserError(f"`data.cache`: {folder} cannot be written ({getattr(error, 'strerror', None) or error})")
