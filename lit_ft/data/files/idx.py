"""Files in the IDX format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from lit_ft.errors import UserError

_UNSIGNED_BYTE = 0x08
_DEFLATE_RATIO = 1032  # most bytes that gzip can make of one: 258 of two bits
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
    try:
        return _read(found, num_dims)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{found}: cannot be read ({error}); fetch it anew") from error


def _read(path: Path, num_dims: int) -> Tensor:
    """Reads a file, and of a gzipped one no more than its header announces."""
    is_packed, size = path.suffix == ".gz", path.stat().st_size
    start, magic = 4 + 4 * num_dims, bytes([0, 0, _UNSIGNED_BYTE, num_dims])
    with gzip.open(path) if is_packed else path.open("rb") as file:
        header = file.read(start)
        if header[:4] != magic or len(header) < start:
            raise UserError(
                f"{path}: not an IDX file of {num_dims}-dimensional bytes: "
                f"it begins with {header[:4].hex()} where {magic.hex()} is expected"
            )
        shape = struct.unpack(f">{num_dims}I", header[4:])
        expected = start + math.prod(shape)
        if not is_packed and size != expected:
            raise UserError(f"{path}: damaged: {size} bytes where its header announces {expected}; fetch it anew")
        if is_packed and expected > size * _DEFLATE_RATIO:
            raise UserError(f"{path}: damaged: its {size} bytes cannot hold the {expected} that its header announces")
        try:
            data = bytearray(expected - start + 1)  # one more, to see that there is none, and the checksum
        except MemoryError as error:
            raise UserError(f"{path}: its header announces {expected} bytes, more than fit into memory") from error
        count, room = 0, memoryview(data)
        while read := cast(BufferedIOBase, file).readinto(room[count : count + _PART]):
            count += read
    if start + count != expected:
        held = f"more than {expected}" if start + count > expected else start + count
        raise UserError(f"{path}: damaged: {held} bytes where its header announces {expected}; fetch it anew")
    return torch.frombuffer(data, dtype=torch.uint8)[:count].view(shape)


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
