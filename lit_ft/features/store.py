"""Files of cached features: found or written by all processes, then verified."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lightning as L
import torch
from filelock import Timeout
from torch import Tensor

from lit_ft.assets import lock_beside, random_part
from lit_ft.console import log_progress, rank_zero_print
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.sampler import share
from lit_ft.data.modules.arrays import free_memory
from lit_ft.features.layout import Layout
from lit_ft.features.source import FeatureSource, FrozenStages

_NUM_RECOMPUTED = 16
"""Most features, of all views together, that are computed again to verify a file; at most one of 20, where it can."""


class FeatureFile:
    """The file of a split's cached features in a phase.

    Its name is a hash of the weights, the images, the precision and the layout, so that only a file that still holds is
    found. The checksums of a file that an earlier run left are verified before any process reads it: the processes of
    a machine share the blocks, and all decide alike.

    A file of no phase is kept for other runs, which may look for it at the same moment: the first one writes it, and
    the others wait for that.
    """

    def __init__(
        self, trainer: L.Trainer, stages: FrozenStages, layout: Layout, loader: Loader, folder: Path,
        phase: int | None, split: str,
    ) -> None:  # fmt: skip
        self._trainer = trainer
        self._stages = stages
        self._layout = layout
        self._loader = loader
        self._seed = loader.sampler.seed
        # At the scale that the finest of the views needs, and not each at its own.
        decoded = " of one decode" if layout.views > 1 else ""
        content = f"{stages.identity()} {loader.source.identity()} {layout} {self._seed}{decoded}"
        name = f"{split}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        self._path = folder / f"{name if phase is None else f'phase{phase}-{name}'}.bin"
        self._is_kept = phase is None
        # Of those that are kept, what a killed run left of this one.
        self._others = name if phase is None else f"phase*-{split}-*"
        # The images that this process computes, and the blocks that it sums up, of those of its machine.
        place = trainer.local_rank, trainer.num_devices
        self._rows, self._blocks = share(layout.images, *place), share(layout.blocks, *place)

    def read(self) -> FeatureSource | str:
        """The cached features, or the reason why there are none.

        They are mapped into memory, or moved to the device if they take at most a quarter of its free memory. All
        processes must call this; either all get features or none does.
        """
        with self._held():
            if not (self._agree(self._path.is_file()) and self._is_intact() and self._is_right()):
                failure = self._write() or ("" if self._is_right() else "features computed twice differ")
                if failure:
                    remove_files(self._trainer, self._path.parent, self._others)
                    return failure
            mapped, device = self._layout.map_file(self._path), self._trainer.strategy.root_device
            features = mapped.to(device) if mapped.nbytes <= free_memory(device) / 4 else mapped
        return FeatureSource(features, self._layout, self._loader.source, self._stages.depth)

    def fits(self, limit: float) -> bool:
        """Whether the file is there, or with it those of its folder have at most so many GB; all processes must ask."""
        used = sum(file.stat().st_size for file in self._path.parent.glob("*.bin"))
        return self._agree(self._path.is_file() or used + self._layout.file_bytes <= limit * 1e9)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Holds a file that is kept, as far as its file system has locks, so that no other run writes or removes it."""
        if not self._is_kept or self._trainer.local_rank != 0:
            yield
            return
        lock = lock_beside(self._path)
        try:
            with suppress(OSError, NotImplementedError):  # a folder that cannot be written is told as the file is
                self._path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=1)
                except Timeout:
                    rank_zero_print("Features  are being computed by another run, which this one waits for")
                    lock.acquire()
            yield
        finally:
            lock.release()

    def _write(self) -> str | None:
        """Writes the file, each process its share of the images; returns the reason if that fails."""
        # A name of its own, as another run may use the same folder.
        unfinished = self._path.with_suffix(f".bin{self._trainer.strategy.broadcast(random_part())}")
        # What other settings cached would take space beyond the limit.
        remove_files(self._trainer, unfinished.parent, self._others)
        try:
            for step in (self._reserve, self._fill, self._sum_up, self._finish):
                failure = self._attempt(step, unfinished)
                if not self._agree(failure is None):
                    return failure or "another process failed"
        except BaseException:  # an interrupt, too: no later run would know the name
            with suppress(OSError):
                unfinished.unlink()
            raise
        return None

    def _attempt(self, step: Callable[[Path], None], unfinished: Path) -> str | None:
        """Takes a step of writing; returns the reason if it fails."""
        try:
            step(unfinished)
        except OverflowError as error:
            return f"{error}; choose another `feature_cache.dtype`"
        except OSError as error:
            if step == self._fill:  # an image cannot be read
                raise
            return f"{self._path if step == self._finish else unfinished.parent} cannot be written ({error.strerror})"
        return None

    def _reserve(self, unfinished: Path) -> None:
        if self._trainer.local_rank == 0:
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            self._layout.reserve_file(unfinished)

    def _fill(self, unfinished: Path) -> None:
        features = self._layout.map_file(unfinished)
        source = FeatureSource(features, self._layout, self._loader.source, self._stages.depth)
        done = source.fill(self._stages, self._rows, self._loader.sampler.batch_size, self._seed)
        log_progress("Features", done, self._layout.views * len(self._rows), self._trainer.is_global_zero)

    def _sum_up(self, unfinished: Path) -> None:
        self._layout.write_checksums(unfinished, self._blocks)

    def _finish(self, unfinished: Path) -> None:
        if self._trainer.local_rank == 0:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())  # else a power cut could leave the name, and zeros
            unfinished.replace(self._path)

    def _is_intact(self) -> bool:
        try:
            is_intact = self._layout.is_intact(self._path, self._blocks)
        except OSError:  # it cannot be read
            is_intact = False
        return self._agree(is_intact)

    def _is_right(self) -> bool:
        """Whether a few features of each view, computed again in other batches, equal those in the file."""
        rows = choose_recomputed(self._rows, self._layout.views)
        return self._agree(len(rows) == 0 or self._is_close(rows))

    def _is_close(self, rows: Tensor) -> bool:
        again = self._stages.compute_views(self._loader.source, rows, self._seed, self._layout.views).float().cpu()
        written = self._layout.map_file(self._path)[self._layout.places(rows)]
        # A few roundings, relative to the largest value.
        tolerance = max(1e-4, 4 * self._stages.rounding, 4 * torch.finfo(self._layout.stored).eps)
        difference = (again - self._layout.decode(written).float()).abs().max()
        return bool(difference <= tolerance * again.abs().max())

    def _agree(self, decision: bool) -> bool:
        return self._trainer.strategy.reduce_boolean_decision(decision, all=True)


def choose_recomputed(images: range, views: int) -> Tensor:
    """The images ``(n,)`` whose features are computed again in all views: one of 20, evenly spaced.

    >>> choose_recomputed(range(100), 2), choose_recomputed(range(10, 13), 1)
    (tensor([10, 30, 50, 70, 90]), tensor([11]))
    """
    num = min(len(images), max(1, min(_NUM_RECOMPUTED // views, len(images) // 20)))
    return images.start + (2 * torch.arange(num) + 1) * len(images) // (2 * num)


def remove_files(trainer: L.Trainer, folder: Path, names: str = "phase*-*-*", but: str | None = None) -> None:
    """Removes files of cached features, finished or not, and the folder if it is then empty; one process a machine.

    Files whose names begin with ``but`` stay.
    """
    if trainer.local_rank != 0:
        return
    for file in folder.glob(f"{names}.bin*"):
        if but is None or not file.name.startswith(but):
            with suppress(OSError):  # another machine was first, or it is in use, on Windows
                file.unlink()
    with suppress(OSError):  # there is none, or it has other files
        folder.rmdir()
