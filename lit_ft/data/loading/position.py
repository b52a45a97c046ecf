"""Position of a training run in its data: the batches of the epoch that are done."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.errors import UserError


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
        self._owner = owner
        self.seed: int | None = None
        """Seed of the order of the run that is resumed; some strategies restore it after the loader is made."""
        self._epoch = 0
        self._read = 0
        self._sizes: dict[str, int] = {}
        self._resume: dict[str, Any] | None = None

    def seen_by(self, loader: object) -> Position:
        """The position for a loader: this one, or a new one if another loader is that of the training loop."""
        owner = self._owner() if self._owner else None
        return self if owner is None or owner is loader else Position()

    def copy(self) -> Position:
        """The same position for a loader beside that of the training loop."""
        copied = copy(self)
        copied._owner = None
        return copied

    def begin(self, sampler: EpochSampler) -> int:
        """Begins the sampler's epoch, and returns the index of its first batch that is not done.

        Raises:
            UserError: The run is resumed within an epoch of batches of other sizes.
        """
        if self.seed is not None:
            sampler.seed = self.seed
        self._sizes = sizes_of(sampler)
        resume, self._resume = self._resume, None
        start = 0 if resume is None else first_batch(resume, sampler.epoch, self._sizes)
        self._epoch, self._read = sampler.epoch, start
        return start

    def advance(self) -> None:
        """Counts a batch that is read."""
        self._read += 1

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches done, and the number and size of all; plain numbers."""
        processed = self._processed() if self._processed else None
        done = self._read if processed is None else min(self._read, processed)
        return {"epoch": self._epoch, "batches": done, **self._sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next epoch that begins continue after the batches that were done."""
        self._epoch, self._read = state_dict["epoch"], state_dict["batches"]
        self._sizes = {key: size for key, size in state_dict.items() if key not in ("epoch", "batches")}
        self._resume = dict(state_dict)


def sizes_of(sampler: EpochSampler) -> dict[str, int]:
    """Number of batches in an epoch, images in a batch, and processes."""
    return {"of": len(sampler), "batch_size": sampler.batch_size, "processes": sampler.world_size}


def first_batch(then: dict[str, Any], epoch: int, sizes: dict[str, int]) -> int:
    """Index of the batch that an epoch begins with.

    Args:
        then: State of the position in the run that is resumed.
        epoch: The epoch that begins.
        sizes: The present batches, as `sizes_of` gives them.

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


def adopt_earlier_position(checkpoint: dict[str, Any], data: Any) -> None:
    """Moves the position into the data module's state, in checkpoints that have it as the state of a loader.

    Args:
        checkpoint: The checkpoint that is resumed from.
        data: The data module.
    """
    states = checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    own = checkpoint.get(type(data).__qualname__)
    if own is not None and len(states) == 1 and states[0]:
        own.setdefault("position", states[0])


def _format_sizes(sizes: dict[str, int]) -> str:
    processes = f" in each of {sizes['processes']} processes" if sizes["processes"] > 1 else ""
    return f"{sizes['of']} batches of {sizes['batch_size']} images{processes}"
