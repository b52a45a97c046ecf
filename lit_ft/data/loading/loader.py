"""Loader of batches in a known order, which a resumed run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.position import Position
from lit_ft.data.loading.protocols import Readable, Source
from lit_ft.data.loading.sampler import EpochSampler


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

    def __init__(self, source: Source, sampler: EpochSampler, position: Position | None = None) -> None:
        self.sampler = sampler
        self.source = source
        self.position = position or Position()
        self.stand_in: Callable[[Loader], Readable] | None = None
        """Called at each epoch's first batch for what is read instead of the source; for cached features."""

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
        for batch in source.read(remaining, self.sampler.augment_generator()):
            position.advance()
            yield batch

    def of_images(self) -> Loader:
        """A loader of the same batches that gives images, whatever stands in for them, and leaves this one alone."""
        loader = copy(self)
        loader.position, loader.stand_in = self.position.copy(), None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Nothing, as the data module saves the position. Lightning warns on resume of loaders without this method."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position from checkpoints that have it here, for modules other than `FineTuneModule`."""
        if state_dict:
            self.position.load_state_dict(state_dict)
