"""A streamed set in a folder or bucket: ``set.json``, and its splits in the chunks that litdata reads."""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_ft.assets import is_offline
from lit_ft.compat import chunked_index, download_from_bucket
from lit_ft.data.files.folders import find_folder
from lit_ft.data.fingerprint import digest
from lit_ft.errors import UserError, unknown
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.tasks.task import TaskName

SET_FILE = "set.json"
INDEX_FILE = "index.json"
TARGETS_FILE = "targets.npy"
SPLITS = ("train", "val", "test")

# How litdata stores a sample. Nothing else is read: a set that says `pickle` here would run code of its own.
DATA_FORMAT = ["bytes"]


@dataclass(frozen=True)
class StreamSet:
    """Content of ``set.json``.

    Args:
        task: The task that the targets are for.
        class_names: In the order of the targets.
        images: Number of images, by split.
        names: Path that each image came from, for the splits that are predicted.
    """

    task: TaskName
    class_names: list[str]
    images: dict[str, int]
    names: dict[str, list[str]]

    @classmethod
    def read(cls, root: str) -> StreamSet:
        """Reads it from a folder or bucket; raises `UserError` if there is none, or it is damaged."""
        content = read_set_file(root, SET_FILE)
        try:
            found = cls(**json.loads(content))
            found._check()
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"`data.root`: {root}/{SET_FILE} is damaged ({error}); convert the set again") from error
        if strange := [split for split in found.images if split not in SPLITS]:
            raise unknown("split", strange[0], SPLITS, f"`data.root`: {root}/{SET_FILE}")
        return found

    def _check(self) -> None:
        """Raises an error where a part is not what its annotation says: JSON holds anything."""
        if self.task not in MAIN_METRIC:
            raise ValueError(f"its task is {self.task}")
        names_of = {f"names of {split}": names for split, names in self.names.items()}
        for what, names in {"class_names": self.class_names, **names_of}.items():
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"its {what} are no list of text")
        for split, number in self.images.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"its number of images of {split} is {number!r}")
            if split in ("val", "test") and (named := len(self.names.get(split, ()))) != number:
                raise ValueError(f"it names {named} of {number} images of {split}")


@dataclass(frozen=True)
class ChunkedSplit:
    """One split of a set, or some images of it, in the chunks that litdata reads.

    Args:
        folder: The folder of the split, or where it is in a bucket.
        cache: Folder for chunks that come from a bucket; litdata's own when not given.
        index: Content of ``index.json``, as it was checked.
        chunks: File name of each chunk.
        stops: Where in the whole split each chunk ends, int64.
        rows: Which images of the whole split these are, ascending, int64 ``(N,)``.
        targets: Class of each, int64 ``(N,)``, or the labels or numbers of each, ``(N, K)``.
    """

    folder: str
    cache: str | None
    index: bytes
    chunks: list[str]
    stops: Tensor
    rows: Tensor
    targets: Tensor

    @classmethod
    def read(cls, folder: str, cache: str | None, images: int) -> ChunkedSplit:
        """Reads a split; raises `UserError` if it is missing, damaged, or not as ``lit-ft convert`` writes it."""
        check_litdata("`data.root`")
        content, index = read_set_file(folder, TARGETS_FILE), read_set_file(folder, INDEX_FILE)
        try:
            targets = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
            names, samples, sizes, data_format = _parse_index(index)
        except Exception as error:  # numpy's errors have no class in common
            raise UserError(f"`data.root`: cannot read the index of {folder} ({format_reason(error)})") from error
        held, count = sum(samples), len(targets) if targets.numel() else 0
        if data_format != DATA_FORMAT or {held, count} != {images}:
            held_text = f"{held} samples of {data_format} and {count} targets, not {images} of {DATA_FORMAT}"
            raise UserError(f"`data.root`: {folder} holds {held_text}; convert the set again")
        for name, size in zip(names, sizes, strict=True) if not is_bucket(folder) else ():
            path = Path(folder, name)
            if not path.is_file() or path.stat().st_size < size:
                raise UserError(f"`data.root`: {path} is missing or cut short; copy or convert the set again")
        targets = targets if targets.is_floating_point() else targets.long()
        return cls(folder, cache, index, names, torch.tensor(samples).cumsum(0), torch.arange(images), targets)

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: Tensor) -> ChunkedSplit:
        """The split of these images of this one, which are given in ascending order."""
        return replace(self, rows=self.rows[rows], targets=self.targets[rows])

    def names_digest(self) -> str:
        """A hash of the places in the set, which is never changed once it is written."""
        return digest([self.rows.numpy().tobytes(), self.stops.numpy().tobytes()])

    def first_image(self) -> tuple[str, bytes]:
        """Nothing, as the image may have to be fetched from a bucket."""
        return "", b""

    def chunk_sizes(self) -> list[int]:
        """How many of these images are in each chunk, without chunks that have none."""
        return [len(list(same)) for _, same in groupby(self._chunks_of(self.rows))]

    def samples(self, positions: Tensor) -> Iterator[bytes]:
        """Yields what `pack` made, fetching chunks ahead; raises `UserError` where one cannot be had or read."""
        rows = self.rows[positions]
        chunks = self._chunks_of(rows)
        wanted = [chunk for chunk, _ in groupby(chunks)]
        dataset = self._opened()
        dataset[:0]  # after this, whole chunks are fetched of a bucket, and not one sample at a time
        for i, (row, chunk) in enumerate(zip(rows.tolist(), chunks, strict=True)):
            place = chunked_index(row, chunk, wanted if i == 0 else None, is_last=i == len(chunks) - 1)
            try:
                sample = dataset[place]
            except Exception as error:  # what litdata makes of the content of a chunk can fail in any way
                what = f"{self.folder}/{self.chunks[chunk]} cannot be read ({format_reason(error)})"
                raise UserError(f"`data.root`: {what}; copy or convert the set again") from error
            yield sample

    def _opened(self) -> Any:
        """A reader without a past: one that was left in the middle of an epoch still fetches what it was asked for."""
        from litdata import StreamingDataset

        # One sample at a time: those beside it are wanted later, in another order.
        dataset = StreamingDataset(self.folder, cache_dir=self.cache, batch_decode=0)
        copy = Path(dataset.input_dir.path, INDEX_FILE)
        if copy.read_bytes() != self.index:
            # What litdata goes by is not what was checked: it was in the cache before, or changed since.
            raise UserError(f"`data.root`: {copy} is not the index of {self.folder}; delete its folder and start again")
        return dataset

    def _chunks_of(self, rows: Tensor) -> list[int]:
        found: list[int] = torch.searchsorted(self.stops, rows, right=True).tolist()
        return found


def _parse_index(content: bytes) -> tuple[list[str], list[int], list[int], Any]:
    """Name, number of samples and bytes of each chunk of a split, and how samples are stored, as ``index.json`` says.

    All is checked before litdata makes paths of it. Raises any exception where ``lit-ft convert`` did not write it.
    """
    index = json.loads(content)
    chunks, config = index["chunks"], index["config"]
    names = [chunk["filename"] for chunk in chunks]
    for name in names:  # litdata joins it to the folder of its cache, and fetches to and deletes from there
        if not (isinstance(name, str) and re.fullmatch(r"chunk-\d+-\d+\.bin", name, re.ASCII)):
            raise ValueError(f"{name!r} is no name of a chunk, such as chunk-0-0.bin")
    if len(set(names)) < len(names):
        raise ValueError("a chunk is in it twice")
    time = index.get("updated_at", "0")  # for a bucket, litdata names a folder of its cache by it
    if not (isinstance(time, str) and re.fullmatch(r"\d+(\.\d+)?", time, re.ASCII)):
        raise ValueError(f"updated_at is no time: {time!r}")
    # What `lit-ft convert` leaves unset: each would have litdata read the chunks in another way.
    if strange := [key for key in ("compression", "encryption", "format") if config.get(key)]:
        raise ValueError(f"it has {strange[0]} {config[strange[0]]!r}, which is not read")
    if config.get("item_loader", "PyTreeLoader") != "PyTreeLoader":
        raise ValueError(f"item_loader {config['item_loader']!r} is not read")
    samples, sizes = ([chunk[key] for chunk in chunks] for key in ("chunk_size", "chunk_bytes"))
    if wrong := [number for number in (*samples, *sizes) if type(number) is not int or number < 1]:
        raise ValueError(f"{wrong[0]!r} is no number of samples or bytes")
    return names, samples, sizes, config["data_format"]


def pack(name: str, image: bytes) -> bytes:
    """A sample: a name and the content of an image file in one.

    Apart, litdata would store them in Arrow's format where that is installed, which cannot be read where it is not.
    """
    return os.fsencode(name) + b"\0" + image


def unpack(sample: bytes) -> tuple[str, bytes]:
    """The name and the content of the file."""
    name, _, image = sample.partition(b"\0")
    return os.fsdecode(name), image


def check_litdata(key: str) -> None:
    """Raises `UserError` where litdata is not installed."""
    try:
        import litdata as _  # noqa: F401
    except ImportError as error:
        raise UserError(f"{key}: streaming needs {error.name}; run: pip install 'lit_ft[stream]'") from error


def is_bucket(root: str) -> bool:
    """Whether a set lies where litdata must fetch it from; ``local:FOLDER`` is a folder that is treated so."""
    return "://" in root or root.startswith("local:")


def read_set_file(root: str, name: str) -> bytes:
    """Content of a small file of a set in a folder or bucket; raises `UserError` if it cannot be read."""
    if not is_bucket(root):
        file = find_folder(root, "`data.root`") / name
        try:
            return file.read_bytes()
        except FileNotFoundError as error:
            above = file.parent.parent
            is_part = name == SET_FILE and (above / SET_FILE).is_file()
            hint = f"give {above}" if is_part else "make one of a folder of photos with: lit-ft convert"
            raise UserError(f"`data.root`: {file.parent} is no converted set, it has no {name}; {hint}") from error
        except OSError as error:
            raise UserError(f"`data.root`: cannot read {file} ({format_reason(error)})") from error
    if is_offline() and not root.startswith("local:"):
        raise UserError(f"`offline`: `data.root` {root} is streamed over the network; give a folder")
    check_litdata("`data.root`")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            download_from_bucket(root, name, temporary)
            return Path(temporary, name).read_bytes()
        except Exception as error:  # each kind of bucket has errors of its own
            raise UserError(f"`data.root`: cannot read {root}/{name} ({format_reason(error)})") from error


def format_reason(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
