"""Decides how a set that litdata streams lies in a folder or bucket, and how its chunks are read and become batches."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_ft.assets import is_offline
from lit_ft.data.files.derived_cache import hash_tensors
from lit_ft.data.files.folders import find_folder
from lit_ft.data.fingerprint import digest
from lit_ft.data.loading.photo_source import is_random, seeded, stacked
from lit_ft.data.loading.protocols import Batch
from lit_ft.data.loading.sampler import Picks
from lit_ft.data.loading.workers import InWorkers, Workers
from lit_ft.data.streaming.chunk_index import DATA_FORMAT, INDEX_FILE, ChunkIndex
from lit_ft.errors import UserError, unknown
from lit_ft.tasks.task import MAIN_METRIC, TaskName

SET_FILE = "set.json"
TARGETS_FILE = "targets.npy"
SPLITS = ("train", "val", "test")

Encoded = tuple[bytes, str, int]
"""An image file, its name, and the seed of its augmentation."""


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


@dataclass(frozen=True)
class StreamSet:
    """What ``set.json`` says of a set.

    Args:
        task: The task that the targets are for.
        class_names: In the order of the targets.
        images: Number of images, by split.
        names: Where each image came from, for the splits that are predicted.
    """

    task: TaskName
    class_names: list[str]
    images: dict[str, int]
    names: dict[str, list[str]]

    def write(self, folder: Path) -> None:
        """Writes the file."""
        (folder / SET_FILE).write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def _check_types(self) -> None:
        """Raises ``ValueError`` where a part is not what its annotation says: JSON holds anything."""
        listed = {
            "class_names": self.class_names,
            **{f"names of {split}": names for split, names in self.names.items()},
        }
        for what, names in listed.items():
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(f"its {what} are no list of text")
        for split, number in self.images.items():
            if type(number) is not int or number < 1:
                raise ValueError(f"its number of images of {split} is {number!r}")
            if split in ("val", "test") and len(self.names.get(split, ())) != number:
                raise ValueError(f"it names {len(self.names.get(split, ()))} of {number} images of {split}")

    @classmethod
    def read(cls, root: str) -> StreamSet:
        """Reads it from a folder or bucket.

        Raises:
            UserError: If there is none, or it is damaged.
        """
        content = content_of(root, SET_FILE)
        try:
            found = cls(**json.loads(content))
            strange = [split for split in found.images if split not in SPLITS]
            if found.task not in MAIN_METRIC:
                raise ValueError(f"its task is {found.task}")
            found._check_types()
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"`data.root`: {root}/{SET_FILE} is damaged ({error}); convert the set again") from error
        if strange:
            raise unknown("split", strange[0], SPLITS, f"`data.root`: {root}/{SET_FILE}")
        return found


def content_of(root: str, name: str) -> bytes:
    """What a small file of a set holds.

    Args:
        root: Folder or bucket; a folder may also lie below the one in the variable LIT_FT_DATA.
        name: The file within.

    Raises:
        UserError: If it cannot be read.
    """
    if not is_bucket(root):
        return _content_of_file(find_folder(root, "`data.root`") / name)
    if is_offline() and not root.startswith("local:"):
        raise UserError(f"`offline`: `data.root` {root} is streamed over the network; give a folder")
    check_litdata("`data.root`")
    from litdata.streaming.downloader import get_downloader

    with tempfile.TemporaryDirectory() as temporary:
        try:
            get_downloader(root, temporary, []).download_file(f"{root}/{name}", f"{temporary}/{name}")
            return Path(temporary, name).read_bytes()
        except Exception as error:  # each kind of bucket has errors of its own
            raise UserError(f"`data.root`: cannot read {root}/{name} ({_reason(error)})") from error


def _content_of_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        above = file.parent.parent
        is_part = file.name == SET_FILE and (above / SET_FILE).is_file()
        hint = f"give {above}" if is_part else "make one of a folder of photos with: lit-ft convert"
        raise UserError(f"`data.root`: {file.parent} is no converted set, it has no {file.name}; {hint}") from error
    except OSError as error:
        raise UserError(f"`data.root`: cannot read {file} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class ChunkedSplit:
    """One split of a set, or some images of it, in the chunks that litdata reads.

    Args:
        folder: The folder of the split, or where it is in a bucket.
        cache: Folder for chunks that come from a bucket; litdata's own when not given.
        index: Which chunks there are.
        stops: Where in the whole split each chunk ends, int64.
        rows: Which images of the whole split these are, ascending, int64 ``(N,)``.
        targets: Class of each, int64 ``(N,)``, or the labels or numbers of each, ``(N, K)``.
    """

    folder: str
    cache: str | None
    index: ChunkIndex
    stops: Tensor
    rows: Tensor
    targets: Tensor

    @classmethod
    def read(cls, folder: str, cache: str | None, images: int) -> ChunkedSplit:
        """Reads which chunks there are.

        Raises:
            UserError: If the split is missing, damaged, or not as ``lit-ft convert`` writes it.
        """
        check_litdata("`data.root`")
        content, chunks = content_of(folder, TARGETS_FILE), content_of(folder, INDEX_FILE)
        try:
            targets = torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
            index = ChunkIndex.parse(chunks)
        except Exception as error:  # numpy's errors have no class in common
            raise UserError(f"`data.root`: cannot read the index of {folder} ({_reason(error)})") from error
        held, count = sum(index.samples), len(targets) if targets.numel() else 0
        if index.data_format != DATA_FORMAT or {held, count} != {images}:
            told = f"{held} samples of {index.data_format} and {count} targets, not {images} of {DATA_FORMAT}"
            raise UserError(f"`data.root`: {folder} holds {told}; convert the set again")
        for name, size in () if is_bucket(folder) else zip(index.names, index.sizes, strict=True):
            path = Path(folder, name)
            if not path.is_file() or path.stat().st_size < size:
                raise UserError(f"`data.root`: {path} is missing or cut short; copy or convert the set again")
        targets = targets if targets.is_floating_point() else targets.long()
        return cls(folder, cache, index, torch.tensor(index.samples).cumsum(0), torch.arange(images), targets)

    def __len__(self) -> int:
        """Number of images."""
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

    def indexed(self) -> ChunkedSplit:
        """The same images, with their position as the target."""
        return replace(self, targets=torch.arange(len(self)))

    def chunk_sizes(self) -> list[int]:
        """How many of these images are in each chunk, without chunks that have none."""
        return [len(list(same)) for _, same in groupby(self._chunks_of(self.rows))]

    def samples(self, positions: Tensor) -> Iterator[bytes]:
        """Yields what `pack` made; chunks are fetched ahead, in the order in which they are come to.

        Raises:
            UserError: If a chunk does not come, or is not what the index says.
        """
        from litdata.streaming.sampler import ChunkedIndex

        rows = self.rows[positions]
        chunks = self._chunks_of(rows)
        wanted = [chunk for chunk, _ in groupby(chunks)]
        dataset = self._opened()
        dataset[:0]  # after this, whole chunks are fetched of a bucket, and not one sample at a time
        last = len(chunks) - 1
        for i, (row, chunk) in enumerate(zip(rows.tolist(), chunks, strict=True)):
            ahead = wanted if i == 0 else None
            # By name: releases of litdata differ in what comes third.
            place = ChunkedIndex(index=row, chunk_index=chunk, chunk_indexes=ahead, is_last_index=i == last)
            try:
                sample = dataset[place]
            except Exception as error:  # what litdata makes of the content of a chunk can fail in any way
                name = f"{self.folder}/{self.index.names[chunk]}"
                raise UserError(
                    f"`data.root`: {name} cannot be read ({_reason(error)}); copy or convert the set again"
                ) from error
            yield sample

    def _opened(self) -> Any:
        """A reader without a past: one that was left in the middle of an epoch still fetches what it was asked for."""
        from litdata import StreamingDataset

        # One sample at a time: those beside it are wanted later, in another order.
        dataset = StreamingDataset(self.folder, cache_dir=self.cache, batch_decode=0)
        copy = Path(dataset.input_dir.path, INDEX_FILE)
        if copy.read_bytes() != self.index.content:
            # What litdata goes by is not what was checked: it was in the cache before, or changed since.
            raise UserError(f"`data.root`: {copy} is not the index of {self.folder}; delete its folder and start again")
        return dataset

    def _chunks_of(self, rows: Tensor) -> list[int]:
        found: list[int] = torch.searchsorted(self.stops, rows, right=True).tolist()
        return found


class _Decoded(Dataset[Tensor]):
    """Decodes whole batches, in a worker process or not."""

    def __init__(self, transform: v2.Compose) -> None:
        self.transform = transform

    def __getitem__(self, samples: list[Encoded]) -> Tensor | UserError:  # type: ignore[override]
        try:
            images = [seeded(self.transform, io.BytesIO(data), seed, name) for data, name, seed in samples]
        except UserError as error:
            return error
        return stacked(images)


class StreamSource:
    """Batches of a `ChunkedSplit`, which this process reads and its workers decode.

    Only this process reads: workers that took turns at the same chunks would delete them from one another's cache.

    Args:
        split: The images.
        transform: uint8 ``(3, H, W)`` to uint8 of one size; its randomness comes from torch.
        workers: The processes that decode; when not given, none but this one.
    """

    def __init__(self, split: ChunkedSplit, transform: v2.Compose, workers: Workers | None = None) -> None:
        self.split = split
        self._transform = transform
        self._workers = InWorkers(_Decoded(transform), workers)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.split)

    @property
    def is_augmented(self) -> bool:
        """Whether random crops are taken."""
        return is_random(self._transform)

    def identity(self) -> str:
        """Where the images are, which of them, and what is done to them; not what they hold, which may be far away."""
        held = [self.split.stops, self.split.rows]
        return f"{self.split.folder} {hash_tensors(held)} {self._transform}"

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[Batch]:
        """Yields each batch; raises `UserError` for an image that cannot be read."""
        seeds = torch.randint(2**63 - 1, (len(self),), generator=generator)
        if batches:
            decoded = self._workers.batches(self._encoded(batches, seeds))
            for picks, images in zip(batches, decoded, strict=True):
                yield images, self.split.targets[picks.rows]

    def _encoded(self, batches: Sequence[Picks], seeds: Tensor) -> Iterator[list[Encoded]]:
        samples = self.split.samples(torch.cat([picks.rows for picks in batches]))
        for picks in batches:
            # The seeds first: where they end, `zip` must not have taken a sample.
            taken = zip(seeds[picks.places].tolist(), samples, strict=False)
            # Bytes of their own, not a view of a chunk that may be gone when they are sent.
            unpacked = [(seed, *unpack(bytes(sample))) for seed, sample in taken]
            yield [(image, f"{self.split.folder}: {name}", seed) for seed, name, image in unpacked]
