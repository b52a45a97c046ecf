"""Validations of several weights whose first stages are the same: these see the images once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.protocols import Readable
from lit_ft.data.loading.sampler import Picks
from lit_ft.features.source import FrozenStages, find_own_hook, find_own_step
from lit_ft.unfreezing.preconditions import is_replicated

_MOST_BYTES = 1 << 30


class SharedPrefix:
    """Keeps the output of the first stages for the batches of a validation, for the further ones on the same images.

    It is kept in memory, of as many batches as 1 GiB holds; without a stage that all weights share, of none.

    Args:
        trainer: The trainer that validates.
        module: The module.
        states: The weights, of one of which it has at least the first stages.
    """

    def __init__(self, trainer: Any, module: Any, states: Sequence[Mapping[str, Tensor]]) -> None:
        self._trainer = trainer
        own = find_own_hook(module, trainer.datamodule) or find_own_step(module, "validation_step")
        self._depth = 0 if own or not is_replicated(trainer.strategy) else count_equal_stages(module, states)
        self._stages = FrozenStages(trainer, module, self._depth)
        self._kept: list[tuple[StageOutput, Tensor]] = []
        self._num_bytes = 0
        self._source: Readable | None = None

    def replace_images(self) -> None:
        """Lets the loader of a validation that has begun give what is kept."""
        loader = self._trainer.val_dataloaders
        if self._depth and isinstance(loader, Loader):
            self._source, loader.stand_in = loader.source, lambda _: self

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[tuple[StageOutput, Tensor]]:
        """Yields each batch; the batches are the same each time, or fewer."""
        yield from self._kept[: len(batches)]
        rest = batches[len(self._kept) :]
        for images, targets in cast(Readable, self._source).read(rest, generator):
            given = StageOutput(self._stages(cast(Tensor, images)), self._depth)
            self._num_bytes += given.values.nbytes
            if self._num_bytes <= _MOST_BYTES:
                self._kept.append((given, targets))
            yield given, targets


def count_equal_stages(module: Any, states: Sequence[Mapping[str, Tensor]]) -> int:
    """The number of first stages of a module whose tensors are equal in all state dicts."""
    first, *others = states
    owned = module.state_dict(keep_vars=True)
    changed = {id(owned[name]) for name, value in first.items() if any(not value.equal(one[name]) for one in others)}
    for depth, parts in enumerate(module.backbone.stage_modules().values()):
        tensors = (value for part in parts for value in part.state_dict(keep_vars=True).values())
        if any(id(value) in changed for value in tensors):
            return depth
    return len(module.backbone.stage_modules())
