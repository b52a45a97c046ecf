"""Decides how the outputs for a split come into a file: found there, or written by all processes, and checked."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import lightning as L
import torch
from tqdm import tqdm

from lit_ft.console import rank_zero_print
from lit_ft.data.loading.loader import Loader
from lit_ft.data.modules.arrays import free_memory
from lit_ft.features.frozen_part import FrozenPart
from lit_ft.features.source import FeatureSource, Layout, write_outputs
from lit_ft.runs import Run

_CHECKED = 16
"""Images whose outputs are computed once more."""


class FeatureFile:
    """The file of the outputs for a split in a phase.

    Its name tells whether it holds: it follows from the weights, the images, the precision, and what is kept of them.
    Whether it is intact is told by checksums: of a file that was found, not written in this run, the processes of a
    machine verify all blocks between them before any is read, so that all decide alike.

    Args:
        trainer: Has the processes.
        part: Computes the outputs.
        layout: What is kept of them.
        loader: Has the images.
        folder: Where the files of this machine go.
        phase: Number of the phase.
        split: Name of the split.
    """

    def __init__(
        self, trainer: L.Trainer, part: FrozenPart, layout: Layout, loader: Loader, folder: Path, phase: int, split: str
    ) -> None:
        self._trainer = trainer
        self._part = part
        self._layout = layout
        self._loader = loader
        self._seed = loader.sampler.seed
        holds = f"{part.identity()} {loader.source.identity()} {layout} {self._seed}"
        self._path = folder / f"phase{phase}-{split}-{hashlib.sha256(holds.encode()).hexdigest()[:16]}.bin"
        self._others = f"phase*-{split}-*"
        # The images that this process computes, and the blocks that it has to do with, of those of its machine.
        self._share, self._blocks = (self._part_of(number) for number in (layout.images, layout.blocks))

    def _part_of(self, number: int) -> range:
        ranks = (self._trainer.local_rank, self._trainer.local_rank + 1)
        return range(*(number * rank // self._trainer.num_devices for rank in ranks))

    def read(self) -> FeatureSource | str:
        """The outputs, mapped or near the model if they take a quarter of what is free there; or why there are none.

        All processes must call this, and all get outputs or none does.
        """
        is_there = self._agreed(self._path.is_file()) and self._is_intact() and self._is_right()
        failure = None if is_there else self._write()
        if not is_there and failure is None and not self._is_right():
            failure = "what is computed twice differs"
        if failure is not None:
            remove_files(self._trainer, self._path.parent, self._others)
            return failure
        kept, device = self._layout.mapped(self._path), self._trainer.strategy.root_device
        near = kept.to(device) if kept.nbytes <= free_memory(device) / 4 else kept
        return FeatureSource(near, self._layout, self._loader.source, self._part.depth)

    def _write(self) -> str | None:
        """Writes the file, each process its share of the images; tells what went wrong, if it did."""
        # A name of its own, as another run may use the same folder.
        unfinished = self._path.with_suffix(f".bin{self._trainer.strategy.broadcast(os.getpid())}")
        try:
            for step in (self._reserve, self._fill, self._sum_up, self._finish):
                failure = step(unfinished)
                if not self._agreed(failure is None):
                    return failure or "another process failed"
        except BaseException:  # an interrupt, too: no later run would know the name
            with suppress(OSError):
                unfinished.unlink()
            raise
        return None

    def _reserve(self, unfinished: Path) -> str | None:
        # What other settings kept would take room beyond the limit.
        remove_files(self._trainer, unfinished.parent, self._others)
        if self._trainer.local_rank == 0:
            try:
                unfinished.parent.mkdir(parents=True, exist_ok=True)
                self._layout.reserve(unfinished)
            except OSError as error:
                return f"{unfinished.parent} cannot be written ({error.strerror})"
        return None

    def _fill(self, unfinished: Path) -> str | None:
        kept, size = self._layout.mapped(unfinished), self._loader.sampler.batch_size
        done = write_outputs(kept, self._layout, self._loader.source, self._part, self._share, size, self._seed)
        try:
            _show(done, self._layout.views * len(self._share), self._trainer.is_global_zero)
        except OverflowError as error:
            return f"{error}; give another `feature_cache.dtype`"
        return None

    def _sum_up(self, unfinished: Path) -> str | None:
        try:
            self._layout.write_sums(unfinished, self._blocks)
        except OSError as error:
            return f"{unfinished.parent} cannot be written ({error.strerror})"
        return None

    def _finish(self, unfinished: Path) -> str | None:
        if self._trainer.local_rank == 0:
            try:
                with unfinished.open("rb+") as file:
                    os.fsync(file.fileno())  # else a power cut could leave the name, and zeros
                unfinished.replace(self._path)
            except OSError as error:
                return f"{self._path} cannot be written ({error.strerror})"
        return None

    def _is_intact(self) -> bool:
        try:
            is_intact = self._layout.is_intact(self._path, self._blocks)
        except OSError:  # it cannot be read
            is_intact = False
        return self._agreed(is_intact)

    def _is_right(self) -> bool:
        """Whether a few outputs of each view, in other company than they were computed in, are what was kept."""
        count = min(_CHECKED, len(self._share))
        first, last = self._share.start, self._share.stop - 1
        rows = torch.linspace(first, last, count, dtype=torch.float64).round().long()
        views = self._layout.views
        of_views = [(view, rows[view % max(1, len(rows)) :: views]) for view in range(views)]
        return self._agreed(all(self._is_kept(some, view) for view, some in of_views if len(some)))

    def _is_kept(self, rows: torch.Tensor, view: int) -> bool:
        again = self._part.of_rows(self._loader.source, rows, self._seed, view).float().cpu()
        kept = self._layout.mapped(self._path)[view * self._layout.images + rows]
        # Some roundings, as a share of the largest.
        tolerance = max(1e-4, 4 * self._part.rounding, 4 * torch.finfo(self._layout.stored).eps)
        difference = (again - self._layout.from_memory(kept).float()).abs().max()
        return bool(difference <= tolerance * again.abs().max())

    def _agreed(self, decision: bool) -> bool:
        return self._trainer.strategy.reduce_boolean_decision(decision, all=True)


def node_folder(trainer: L.Trainer, run: Run) -> Path:
    """The folder of outputs of this node.

    In one folder, a node would remove what another one has just made, if only the folder itself.
    """
    return run.features(trainer.node_rank if trainer.num_nodes > 1 else None)


def remove_strays(trainer: L.Trainer, run: Run) -> None:
    """Removes the outputs of a run that is resumed on another number of nodes, which no node of this one goes by."""
    nodes = trainer.num_nodes
    own = {run.features(node) for node in range(nodes)} if nodes > 1 else {run.features()}
    for folder in (run.features(), *run.folder.glob(run.features("[0-9]*").name)):
        if folder not in own:
            remove_files(trainer, folder)


def remove_files(trainer: L.Trainer, folder: Path, names: str = "phase*-*-*", but: str | None = None) -> None:
    """Removes files of outputs, finished or not, and the folder if it is empty then; on each machine, by one process.

    Args:
        trainer: Has the processes.
        folder: Where they are, which may have other files as well.
        names: Pattern of those to remove.
        but: How the names of those begin that stay; none when not given.
    """
    if trainer.local_rank != 0:
        return
    for file in folder.glob(f"{names}.bin*"):
        if but is None or not file.name.startswith(but):
            with suppress(OSError):  # another machine was first, or it is in use, on Windows
                file.unlink()
    with suppress(OSError):  # there is none, or it has other files
        folder.rmdir()


def _show(done: Iterable[int], total: int, is_first: bool) -> None:
    """Goes through numbers of images that are done, and shows on the first process how far it is.

    Args:
        done: The number of images in each batch.
        total: All of them.
        is_first: Whether this is that process; it shows a bar in a terminal, else a line every minute.
    """
    spoke, count = time.monotonic(), 0
    with tqdm(total=total, desc="Features", unit=" images", disable=None if is_first else True, leave=False) as bar:
        for number in done:
            count += number
            bar.update(number)
            if bar.disable and time.monotonic() - spoke > 60:
                spoke = time.monotonic()
                rank_zero_print(f"Features  {count:,} of {total:,} images")
