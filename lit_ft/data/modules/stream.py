"""Data module of a set that litdata streams from a folder or bucket, and the source of its batches."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lit_ft.backbones.input_spec import Fit
from lit_ft.data.files.derived_cache import hash_tensors
from lit_ft.data.files.folders import find_folder
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.loading.photo_source import draw_seeds, is_random, stack_images, transform_views
from lit_ft.data.loading.protocols import Augment, ImageBatch, Split
from lit_ft.data.loading.sampler import ChunkSampler, Picks
from lit_ft.data.loading.workers import InWorkers, Workers, check_workers, workers_for
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.options import check_choice
from lit_ft.data.streaming.stream_set import ChunkedSplit, StreamSet, is_bucket, unpack
from lit_ft.errors import UserError
from lit_ft.tasks.task import TaskName


class _Decoded(Dataset[Tensor]):
    """Decodes whole batches of files, their names and the seeds of their views, in a worker process or not."""

    def __init__(self, transform: v2.Compose) -> None:
        self.transform = transform

    def __getitem__(self, samples: list[tuple[bytes, str, list[int]]]) -> Tensor | UserError:  # type: ignore[override]
        try:
            images = [
                view
                for data, name, seeds in samples
                for view in transform_views(self.transform, io.BytesIO(data), seeds, name)
            ]
        except UserError as error:
            return error
        return stack_images(images)


class StreamSource:
    """Batches of a `ChunkedSplit`, which this process reads and its workers decode.

    Only this process reads: workers that took turns at the same chunks would delete them from one another's cache.
    The transform is as for `PhotoSource`.
    """

    def __init__(self, split: ChunkedSplit, transform: v2.Compose, workers: Workers | None = None) -> None:
        self.split = split
        self._transform = transform
        self._workers = InWorkers(_Decoded(transform), workers)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def is_augmented(self) -> bool:
        """Whether random crops are taken."""
        return is_random(self._transform)

    def identity(self) -> str:
        """Where the images are, which of them, and what is done to them; not what they hold, which may be far away."""
        return f"{self.split.folder} {hash_tensors([self.split.stops, self.split.rows])} {self._transform}"

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[ImageBatch]:
        """Yields each batch; raises `UserError` for an image that cannot be read."""
        return self.read_views(batches, [generator])

    def read_views(self, batches: Sequence[Picks], generators: Sequence[torch.Generator]) -> Iterator[ImageBatch]:
        """Yields each batch in several views; see `PhotoSource.read_views`."""
        seeds = draw_seeds(len(self), generators)
        if batches:
            decoded = self._workers.batches(self._encoded(batches, seeds))
            for picks, images in zip(batches, decoded, strict=True):
                yield images, self.split.targets[picks.rows].repeat_interleave(len(generators), dim=0)

    def _encoded(self, batches: Sequence[Picks], seeds: Tensor) -> Iterator[list[tuple[bytes, str, list[int]]]]:
        samples = self.split.samples(torch.cat([picks.rows for picks in batches]))
        for picks in batches:
            # The seeds first: where they end, `zip` must not have taken a sample.
            taken = zip(seeds[picks.places].tolist(), samples, strict=False)
            # Bytes of their own, not a view of a chunk that may be gone when they are sent.
            unpacked = [(*unpack(bytes(sample)), own) for own, sample in taken]
            yield [(image, f"{self.split.folder}: {name}", own) for name, image, own in unpacked]


class StreamDataModule(ImageDataModule[ChunkedSplit]):
    """Streaming data sets that ``lit-ft convert`` wrote, read by litdata. Needs ``lit_ft[stream]``.

    Training goes through the chunks in an order that is shuffled, and through each chunk in an order that is, too;
    the converter has dealt the images out to the chunks at random. Each process reads chunks of its own, and no image
    is dropped or repeated, whatever the number of processes.

    Args:
        root: What was converted: a folder, which may also lie in the folder that the environment variable LIT_FT_DATA
            names, or where it was copied to in a bucket, such as ``s3://BUCKET/SET``.
        num_workers: Number of processes that decode images, for each training process. When not given, chosen by the
            number of CPUs.
        chunk_cache: Folder for what comes from a bucket. When not given, the one in the environment variable
            LITDATA_CACHE_DIR, or ``~/.lightning/chunks``. The variable MAX_CACHE_SIZE, such as ``100GB``, is its
            maximum size; by default three quarters of the free space.
        augment: ``basic`` takes a random part of at least half the area and mirrors half of the images.
        fit: How a photo becomes the square that the network takes, in evaluation and prediction: ``crop`` cuts out the
            centre; ``pad`` sees the whole photo, with a rim of the mean colour; ``squash`` squeezes it. The checkpoint
            records it. When not given, that of the model: ``crop``, but for a few of timm's networks.
        **common: The options of every data module; ``sampling`` is always ``shuffle``.
    """

    test_advice = "to hold some out, convert the photos again with `data.test_fraction`"

    def __init__(
        self,
        root: str = "data",
        num_workers: int | None = None,
        chunk_cache: str | None = None,
        augment: Augment = "basic",
        fit: Fit | None = None,
        **common: Any,
    ) -> None:
        super().__init__(augment=augment, **common)
        check_choice("fit", fit, get_args(Fit))
        self.fit = fit
        check_workers(num_workers)
        if self.sampling != "shuffle":
            raise UserError(f"`data.sampling`: {self.sampling} is not for a streamed set; use shuffle")
        self.root = root.rstrip("/")
        self.num_workers = num_workers
        self.chunk_cache = chunk_cache

    @cached_property
    def about(self) -> StreamSet:
        """Content of ``set.json``."""
        return StreamSet.read(self.root)

    @property
    def task(self) -> TaskName:  # type: ignore[override]
        """That of the set that was converted."""
        return self.about.task

    @property
    def class_names(self) -> list[str]:
        """Those of the set that was converted."""
        return list(self.about.class_names)

    @property
    def predict_paths(self) -> list[str]:
        """Where each test image lay in the folder that was converted."""
        return self.about.names[self.tested]

    def read_splits(self) -> dict[Split, ChunkedSplit]:
        """Opens each split."""
        base = self.root if is_bucket(self.root) else str(find_folder(self.root, "`data.root`"))
        splits: dict[Split, ChunkedSplit] = {}
        for split in [split for split in get_args(Split) if split in self.about.images]:
            splits[split] = ChunkedSplit.read(f"{base}/{split}", self.chunk_cache, self.about.images[split])
            if not self._fits(splits[split].targets):
                what = f"{self.task} with {len(self.class_names)} classes"
                raise UserError(
                    f"`data.root`: the targets of {self.root}/{split} are not of {what}; convert the set again"
                )
        tested = splits["test" if "test" in splits else "val"]
        return {**splits, "predict": replace(tested, targets=torch.arange(len(tested)))}

    def _fits(self, targets: Tensor) -> bool:
        """Whether targets are of the set's task and classes; others would index what is not there."""
        number = len(self.class_names)
        if targets.shape[1:] != (() if self.task == "multiclass" else (number,)):
            return False
        if self.task == "regression":
            return targets.is_floating_point() and bool(targets.isfinite().all())
        most = number if self.task == "multiclass" else 2
        return not targets.is_floating_point() and 0 <= int(targets.min()) <= int(targets.max()) < most

    def sampler(self, source: Any, **options: Any) -> ChunkSampler:
        """An order that stays within a chunk until all of it is read."""
        return ChunkSampler(source.split.chunk_sizes(), self.batch_size, **options)

    def source(self, split: Split, augment: bool) -> StreamSource:
        """The images of a split; those of ``predict`` are the test images with their index as target."""
        spec, images = self.input_spec, self.splits[split]
        workers = workers_for(self.trainer, len(images), self.batch_size, spec.size**2 * 3, self.num_workers)
        return StreamSource(images, train_transform(spec, self.augment) if augment else spec.geometry(), workers)
