"""Decides how batches reach the Trainer: in a known order, and from the next batch on when a run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.protocols import Readable, Source
from lit_ft.data.loading.sampler import EpochSampler
from lit_ft.errors import UserError


class Loader:
    """Reads a source in the sampler's order, and remembers how far it got.

    It is no ``torch.utils.data.DataLoader``: Lightning builds those anew under DDP, with a sampler of its own that
    repeats images to fill the last batch.

    Args:
        source: Where the images come from.
        sampler: Which of them make up each batch. Lightning finds it by this name and sets its epoch.
        processed: Tells how many batches of the epoch the training loop is done with. It is less than the number
            yielded when a checkpoint is written because a step failed; that step's batch must come again.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a `sampler`

    def __init__(self, source: Source, sampler: EpochSampler, processed: Callable[[], int] | None = None) -> None:
        self.sampler = sampler
        self.source = source
        self.stand_in: Callable[[Loader], Readable] | None = None
        """Asked at each epoch's first batch what to read in the source's place; for outputs that were kept."""
        self._processed = processed
        self._epoch = 0
        self._yielded = 0
        self._resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Number of batches in a whole epoch, also after a resume."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor | StageOutput, Tensor]]:
        """Yields the batches of the epoch that is set when the first of them is asked for.

        Lightning calls ``iter()`` before it sets the epoch, hence a generator.
        """
        start = self._start()
        self._epoch, self._yielded = self.sampler.epoch, start
        remaining = self.sampler.batches()[start:]
        source = self.source if self.stand_in is None else self.stand_in(self)
        for batch in source.read(remaining, self.sampler.augment_generator()):
            self._yielded += 1
            yield batch

    def of_images(self) -> Loader:
        """A loader of the same batches that gives images, whatever stands in for them, and leaves this one alone."""
        loader = copy(self)
        loader.stand_in = None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """How many batches of which epoch are behind us, and how large they are."""
        done = self._yielded if self._processed is None else min(self._yielded, self._processed())
        return {"epoch": self._epoch, "batches": done, "of": len(self), **self._sizes()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets the next iteration continue after the batches that were done."""
        self._epoch, self._yielded = state_dict["epoch"], state_dict["batches"]
        self._resume = dict(state_dict)

    def _sizes(self) -> dict[str, int]:
        return {"batch_size": self.sampler.batch_size, "processes": self.sampler.world_size}

    def _start(self) -> int:
        """Index of the batch to begin with."""
        resume, self._resume = self._resume, None
        # A checkpoint at an epoch's end is resumed in the next one. `batches` alone does not tell, as
        # ``trainer.limit_train_batches`` ends epochs early.
        if resume is None or resume["epoch"] != self.sampler.epoch or resume["batches"] == resume["of"]:
            return 0
        # Not by their number alone: as many batches of another size would leave images out, or repeat some.
        given = {"of": len(self), **self._sizes()}
        if any(resume.get(key, value) != value for key, value in given.items()):
            then = {**given, **resume}
            raise UserError(
                f"`ckpt_path`: written after {then['batches']} of the {_told(then)}, of which there now are "
                f"{_told(given)}; resume with the same data, `data.batch_size` and number of processes, or from a "
                "checkpoint of the end of an epoch"
            )
        return int(resume["batches"])


def _told(sizes: dict[str, int]) -> str:
    processes = f" in each of {sizes['processes']} processes" if sizes["processes"] > 1 else ""
    return f"{sizes['of']} batches of {sizes['batch_size']} images{processes}"
