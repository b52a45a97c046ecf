"""Loader of batches in a known order, and the position in it, from which a resumed run continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.protocols import ImageSource, Readable
from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.errors import UserError


class Loader:
    """Reads a source in the sampler's order.

    It is no ``torch.utils.data.DataLoader``: Lightning builds those anew under DDP, with a sampler of its own that
    repeats images to fill the last batch.

    Args:
        source: Gives the images.
        sampler: Which of them make up each batch. Lightning finds it by this name and sets its epoch.
        position: The batches that are done; when not given, each epoch begins with its first.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a `sampler`

    def __init__(self, source: ImageSource, sampler: EpochSampler, position: Position | None = None) -> None:
        self.sampler = sampler
        self.source = source
        self.position = position or Position()
        self.stand_in: Callable[[Loader], Readable] | None = None
        """Called at each epoch's first batch for what is read instead of the source; for cached features."""
        self.seconds_waited = 0.0
        """Time in which whoever reads the batches has waited for them, in all epochs."""

    def __len__(self) -> int:
        """Number of batches in a whole epoch, also after a resume."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor | StageOutput, Tensor]]:
        """Yields the batches of the epoch that is set when the first of them is asked for.

        Lightning calls ``iter()`` before it sets the epoch, hence a generator.
        """
        position = self.position.seen_by(self)
        remaining = self.sampler.batches()[position.begin(self.sampler) :]
        source = self.source if self.stand_in is None else self.stand_in(self)
        batches = iter(source.read(remaining, self.sampler.augment_generator()))
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - began
            if batch is None:
                return
            position.advance()
            yield batch

    def of_images(self) -> Loader:
        """A loader of the same batches that gives images, whatever stands in for them, and leaves this one alone."""
        loader = copy(self)
        loader.position, loader.stand_in = copy(self.position), None
        loader.position.owner = None  # this loader is not that of the training loop
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Nothing, as the data module saves the position. Lightning warns on resume of loaders without this method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position from checkpoints that have it here, for modules other than `FineTuneModule`."""
        if state_dict:
            self.position.load_state_dict(state_dict)


class Position:
    """The epoch, and how many of its batches are done; part of the data module's state.

    Args:
        processed: Number of batches of the epoch that the training loop has done, where there is one. It is less than
            the number read when a checkpoint is written because a step failed; that step's batch must come again.
        owner: The loader of the training loop, where there is one; others of the same data leave the position alone.
    """

    def __init__(
        self, processed: Callable[[], int | None] | None = None, owner: Callable[[], object | None] | None = None
    ) -> None:
        self._processed = processed
        self.owner = owner
        self.seed: int | None = None
        """Seed of the order of the run that is resumed; some strategies restore it after the loader is made."""
        self._state: dict[str, Any] = {"epoch": 0, "batches": 0}
        self._resume: dict[str, Any] | None = None

    def seen_by(self, loader: object) -> Position:
        """The position for a loader: this one, or a new one if another loader is that of the training loop."""
        owner = self.owner() if self.owner else None
        return self if owner is None or owner is loader else Position()

    def begin(self, sampler: EpochSampler) -> int:
        """Begins the sampler's epoch, and returns the index of its first batch that is not done; see `first_batch`."""
        if self.seed is not None:
            sampler.seed = self.seed
        sizes = {"of": len(sampler), "batch_size": sampler.batch_size, "processes": sampler.world_size}
        resume, self._resume = self._resume, None
        start = 0 if resume is None else first_batch(resume, sampler.epoch, sizes)
        self._state = {"epoch": sampler.epoch, "batches": start, **sizes}
        return start

    def advance(self) -> None:
        """Counts a batch that is read."""
        self._state["batches"] += 1

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches done, and the number and size of all; plain numbers."""
        read = self._state["batches"]
        processed = self._processed() if self._processed else None
        return {**self._state, "batches": read if processed is None else min(read, processed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next epoch that begins continue after the batches that were done."""
        self._state, self._resume = dict(state_dict), dict(state_dict)


def first_batch(then: dict[str, Any], epoch: int, sizes: dict[str, int]) -> int:
    """Index of the batch that an epoch begins with, by the state of the position in the run that is resumed.

    Raises:
        UserError: It is within the epoch that was interrupted, and the batches were of other sizes.
    """
    # A checkpoint at an epoch's end is resumed in the next one. The epoch alone does not show it, as
    # ``trainer.limit_train_batches`` ends epochs early.
    if then["epoch"] != epoch or then["batches"] == then.get("of"):
        return 0
    # Not by their number alone: as many batches of another size would leave images out, or repeat some.
    if any(then.get(key, value) != value for key, value in sizes.items()):
        raise UserError(
            f"`ckpt_path`: written after {then['batches']} of the {_format_sizes({**sizes, **then})}, of which there "
            f"now are {_format_sizes(sizes)}; resume with the same data, `data.batch_size` and number of processes, or "
            "from a checkpoint of the end of an epoch"
        )
    return int(then["batches"])


def _format_sizes(sizes: dict[str, int]) -> str:
    processes = f" in each of {sizes['processes']} processes" if sizes["processes"] > 1 else ""
    return f"{sizes['of']} batches of {sizes['batch_size']} images{processes}"


def adopt_earlier_position(checkpoint: dict[str, Any], data: Any) -> None:
    """Moves the position into the data module's state, in checkpoints that have it as the state of a loader."""
    states = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    own = checkpoint.get(type(data).__qualname__)
    if own is not None and len(states) == 1 and states[0]:
        own.setdefault("position", states[0])
