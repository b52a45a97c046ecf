"""Files in the IDX format of MNIST."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.errors import UserError

_UNSIGNED_BYTE = 0x08
_TYPES = {_UNSIGNED_BYTE: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_DIMS = 4  # more would be no images
DEFLATE_RATIO = 1032
"""Most bytes that deflate, the compression of gzip and zip, can make of one: 258 of two bits."""

_PART = 1 << 20  # bytes that are unpacked at a time, of which gzip makes a copy


def find_idx(path: Path) -> Path | None:
    """The file itself, or its gzipped form, or nothing."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def read_idx(path: Path, num_dims: int) -> Tensor:
    """Reads an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist/), plain or gzipped.

    The header is two zero bytes, the type of the values, the number of dimensions, and the size of each dimension as
    a big-endian 32-bit integer; the values follow in C order.

    Args:
        path: The file, without ``.gz``.
        num_dims: Dimensions of the tensor, uint8: 3 for images, 1 for labels.

    Raises:
        UserError: The file is missing, damaged, or of another kind.
    """
    found = find_idx(path)
    if found is None:
        raise UserError(f"`data.root`: missing file {path} (or {path.name}.gz); to fetch it: `data.download` true")
    magic = bytes([0, 0, _UNSIGNED_BYTE, num_dims])
    with _opened(found) as file:
        if len(header := file.read(4 + 4 * num_dims)) < 4 + 4 * num_dims or header[:4] != magic:
            raise UserError(
                f"{found}: not an IDX file of {num_dims}-dimensional bytes: "
                f"it begins with {header[:4].hex()} where {magic.hex()} is expected"
            )
        return torch.from_numpy(_read_values(file, found, np.dtype("u1"), _shape(header)))


def read_idx_header(path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the values of an IDX file of any kind, plain or gzipped.

    Raises:
        UserError: The file cannot be read, or is no IDX file.
    """
    with _opened(path) as file:
        return _read_header(file, path)


def read_idx_values(path: Path) -> NDArray[Any]:
    """The values of an IDX file of any kind; raises `UserError` where it is damaged, or none."""
    with _opened(path) as file:
        return _read_values(file, path, *_read_header(file, path))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unpacked; whatever cannot be read of it is an error of the file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it anew") from error


def _read_header(file: BinaryIO, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    begin = file.read(4)
    is_idx = len(begin) == 4 and begin[:2] == bytes(2) and begin[2] in _TYPES and 1 <= begin[3] <= _MOST_DIMS
    sizes = file.read(4 * begin[3]) if is_idx else b""
    if not is_idx or len(sizes) < 4 * begin[3]:
        raise UserError(f"{path}: not an IDX file, as it begins with {begin.hex() or 'nothing'}")
    return np.dtype(_TYPES[begin[2]]), _shape(begin + sizes)


def _shape(header: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{header[3]}I", header[4:])


def _read_values(file: BinaryIO, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The values that follow a header, and of a gzipped file no more than that announces."""
    is_packed, size = path.suffix == ".gz", path.stat().st_size
    start = 4 + 4 * len(shape)
    expected = start + math.prod(shape) * dtype.itemsize
    if not is_packed and size != expected:
        raise UserError(f"{path}: damaged: {size} bytes where its header announces {expected}; fetch it anew")
    if is_packed and expected > size * DEFLATE_RATIO:
        raise UserError(f"{path}: damaged: its {size} bytes cannot hold the {expected} that its header announces")
    refuse_beyond_memory(str(path), expected)
    try:
        data = bytearray(expected - start + 1)  # one more, to see that there is none, and the checksum
    except MemoryError as error:
        raise beyond_memory(str(path), expected) from error
    count, room = 0, memoryview(data)
    while read := cast(BufferedIOBase, file).readinto(room[count : count + _PART]):
        count += read
    if start + count != expected:
        held = f"more than {expected}" if start + count > expected else start + count
        raise UserError(f"{path}: damaged: {held} bytes where its header announces {expected}; fetch it anew")
    return np.frombuffer(data, dtype, math.prod(shape)).reshape(shape)


def refuse_beyond_memory(what: str, size: int) -> None:
    """Raises `UserError` for what has more bytes than this machine has memory, where the system says how much it has.

    To reserve them may succeed; the process would be killed as they are filled.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if size > total > 0:
        raise beyond_memory(what, size)


def beyond_memory(what: str, size: int) -> UserError:
    """The error for what has more bytes than fit into memory."""
    return UserError(f"{what}: its header announces {size} bytes, more than fit into memory")


def read_labelled(images: Path, labels: Path, num_classes: int, first_label: int = 0) -> tuple[Tensor, Tensor]:
    """Reads uint8 images ``(N, 1, H, W)`` and int64 targets ``(N,)`` from 0 on; raises `UserError` like `read_idx`."""
    pixels, raw = read_idx(images, 3), read_idx(labels, 1)
    if not pixels.numel():
        raise UserError(f"{images}: no pixels, its images are {' x '.join(map(str, pixels.shape))}")
    if len(pixels) != len(raw):
        raise UserError(f"{labels}: {len(raw)} labels for the {len(pixels)} images of {images.name}")
    targets = raw.long() - first_label
    if not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise UserError(
            f"{labels}: labels from {int(raw.min())} to {int(raw.max())}, "
            f"expected {first_label} to {first_label + num_classes - 1}"
        )
    return pixels.unsqueeze(1), targets
