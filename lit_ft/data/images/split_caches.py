"""Resized copies of the images of all splits of a data module."""

from __future__ import annotations

from collections.abc import Mapping

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.images.cache_writer import open_photo_cache
from lit_ft.data.images.photo_cache import PhotoCache, PhotoFiles
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import usable_cpus


class SplitCaches:
    """The caches of train, val and test, opened once for each size of the images."""

    def __init__(self) -> None:
        self._opened: tuple[InputSpec, dict[Split, PhotoCache]] | None = None

    def open(
        self, folder: str, splits: Mapping[Split, FileSplit], spec: InputSpec, write: bool, num_workers: int | None
    ) -> dict[Split, PhotoCache]:
        """The cache of each split; none where they are not cached and may not be.

        Args:
            folder: The folder of the cache.
            splits: All splits of the data module.
            spec: How images are resized.
            write: Whether the cache may be written.
            num_workers: Number of processes that write it; one a CPU when not given.
        """
        if self._opened is None or self._opened[0] != spec:
            names: list[Split] = [name for name in ("train", "val", "test") if name in splits]
            files = [PhotoFiles.of(splits[name].paths) for name in names]
            workers = usable_cpus() if num_workers is None else num_workers
            found = open_photo_cache(folder, files, spec, write=write, workers=workers)
            if found is None:
                return {}
            self._opened = spec, dict(zip(names, found, strict=True))
        return self._opened[1]
