"""Arrays in files, `.npz`, `.npy` and IDX: their headers, and their content read without running code."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lit_ft.console import format_path
from lit_ft.data.files.folders import holds, is_ignored
from lit_ft.data.files.idx import (
    DEFLATE_RATIO,
    beyond_memory,
    read_idx_header,
    read_idx_values,
    refuse_beyond_memory,
)
from lit_ft.errors import UserError

KEY = "`data.root`"

_NAME_OF_IDX = re.compile(r"(.+?[-._]idx\d[-._]ubyte|.+\.idx)(\.gz)?", re.IGNORECASE)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, of which the header is read.

    Args:
        path: The file.
        member: Its name in an archive; empty for a file of its own.
        dtype: Type of its values.
        shape: Its shape.
        offset: Where its values begin in a `.npy` file of its own; 0 in others.
    """

    path: Path
    member: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int = 0

    def __str__(self) -> str:
        """What it is called in a message."""
        return f"{format_path(self.path)}{f': {self.member}' if self.member else ''}"

    @property
    def is_mapped(self) -> bool:
        """Whether its values can be used where they lie in the file."""
        return self.offset > 0

    def read(self) -> NDArray[Any]:
        """Its values; those of a `.npy` file of its own are mapped, and read when they are used.

        Raises:
            UserError: The file is damaged, or holds objects of Python.
        """
        if self.dtype.hasobject:
            raise UserError(
                f"{KEY}: {self} holds objects of Python, which could run code when they are read, and are not; save an "
                "array of numbers or of text, as with np.stack or .astype('U')"
            )
        if self.dtype.names or self.dtype.kind not in "biufSU":
            raise UserError(f"{KEY}: {self} is of type {self.dtype}; save an array of numbers or of text")
        if not math.prod(self.shape):
            raise UserError(f"{KEY}: {self} is empty, its shape is {self.shape}")
        if self.member:
            return self._unpack()
        if not self.is_mapped:
            return read_idx_values(self.path)
        with _readable(self.path):
            # Of a Fortran order, of which there can be few, numpy knows the shape; "c" lets nothing reach the file.
            return npy.open_memmap(self.path, "c")

    def _unpack(self) -> NDArray[Any]:
        with _readable(self.path), zipfile.ZipFile(self.path) as archive:
            refuse_beyond_memory(str(self), self.num_bytes)
            try:
                with archive.open(f"{self.member}.npy") as file:
                    values: NDArray[Any] = npy.read_array(file, allow_pickle=False)
            except MemoryError as error:
                raise beyond_memory(str(self), self.num_bytes) from error
            return values

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def list_arrays(root: Path) -> dict[str, StoredArray]:
    """The arrays of a `.npz`, or of a folder: of its `.npz`, `.npy` and IDX files, by their names.

    In a `.npz` that is given they are called as there; in a folder as their files, without suffix, and those of a
    `.npz` there ``FILE/NAME``.

    Raises:
        UserError: A file cannot be read, or is none of these.
    """
    if root.is_file():
        return _list_archive(root)
    found: dict[str, StoredArray] = {}
    for path in _array_files(root):
        stem = name_array_file(path.name)
        if path.suffix.lower() == ".npz":
            found |= {f"{stem}/{name}": array for name, array in _list_archive(path).items()}
        else:
            found[stem] = _read_npy_header(path) if path.suffix.lower() == ".npy" else _read_idx(path)
    return found


def holds_arrays(path: Path) -> bool:
    """Whether a path is of arrays: a `.npz` file, or a folder with files of arrays and none in it."""
    if path.is_file():
        return path.suffix.lower() == ".npz"
    try:
        return path.is_dir() and bool(_array_files(path)) and not any(map(_is_folder, path.iterdir()))
    except OSError:
        return False


def name_array_file(name: str) -> str:
    """What an array is called that has a file of its own.

    >>> name_array_file("x_train.npy"), name_array_file("train-images-idx3-ubyte.gz"), name_array_file("y.test.idx")
    ('x_train', 'train-images', 'y.test')
    """
    name = re.sub(r"\.(npy|npz|gz|idx)$", "", name, flags=re.IGNORECASE)
    return re.sub(r"\.idx$|[-._]idx\d[-._]ubyte$", "", name, flags=re.IGNORECASE)


def _array_files(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if not is_ignored(path.name))
    except OSError as error:
        raise UserError(f"{KEY}: {folder} cannot be read ({error.strerror}); change or move it") from error
    return [path for path in files if _is_array_file(path.name) and holds(path.is_file)]


def _is_array_file(name: str) -> bool:
    return name.lower().endswith((".npy", ".npz")) or _NAME_OF_IDX.fullmatch(name) is not None


def _is_folder(path: Path) -> bool:
    return not is_ignored(path.name) and holds(path.is_dir)


def _list_archive(path: Path) -> dict[str, StoredArray]:
    with _readable(path), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        return {info.filename[:-4]: _read_member(path, archive, info) for info in members}


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray:
    """The header of an array in an archive, which must hold what that announces."""
    name = info.filename[:-4]
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed otherwise than numpy does")
    with archive.open(info) as file:
        array = _parse_header(path, name, file)
        expected = file.tell() + array.num_bytes
    if not array.dtype.hasobject and (
        info.file_size != expected or info.file_size > DEFLATE_RATIO * max(1, info.compress_size)
    ):
        raise ValueError(f"{name} has {info.file_size} bytes where its header announces {expected}")
    return array


def _read_npy_header(path: Path) -> StoredArray:
    with _readable(path), path.open("rb") as file:
        array = _parse_header(path, "", file)
        offset, size = file.tell(), path.stat().st_size
        if not array.dtype.hasobject and size != offset + array.num_bytes:
            raise ValueError(f"it has {size} bytes where its header announces {offset + array.num_bytes}")
        return StoredArray(path, "", array.dtype, array.shape, offset)


def _parse_header(path: Path, member: str, file: IO[bytes]) -> StoredArray:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # later ones are for names of columns
        raise ValueError(f"{member or 'it'} is of version {version[0]}.{version[1]} of the format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return StoredArray(path, member, dtype, tuple(map(int, shape)))


def _read_idx(path: Path) -> StoredArray:
    dtype, shape = read_idx_header(path)
    return StoredArray(path, "", dtype, shape)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises whatever fails within as an error of the file."""
    try:
        yield
    except UserError:
        raise
    # Of damaged archives, of those that are encrypted, and of headers that are none.
    except (
        OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, SyntaxError, TypeError,
        NotImplementedError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{KEY}: {format_path(path)} cannot be read as an array ({reason}); save or fetch it anew"
        ) from error
