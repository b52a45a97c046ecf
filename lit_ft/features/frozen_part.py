"""Decides how the frozen part of a network is run by itself, and when what it gave holds no more."""

from __future__ import annotations

import json

import lightning as L
import torch
from torch import Tensor

from lit_ft.data.files.derived_cache import hash_tensors
from lit_ft.data.loading.protocols import Source
from lit_ft.data.loading.sampler import Picks
from lit_ft.features.source import view_generator
from lit_ft.model.module import FineTuneModule

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FrozenPart:
    """The first stages of a module, as they are in a run.

    Args:
        trainer: Has the device and the precision.
        module: The module.
        depth: The number of stages, which are frozen.
    """

    def __init__(self, trainer: L.Trainer, module: FineTuneModule, depth: int) -> None:
        self._trainer = trainer
        self._module = module
        self.depth = depth
        self._hash = self._weights_hash()
        self._sums = self._bit_sums()

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` as loaders give them -> outputs ``(B, ...)``."""
        with torch.inference_mode(), self._trainer.precision_plugin.forward_context():
            given = self._trainer.strategy.batch_to_device(self._trainer.precision_plugin.convert_input(images))
            return self._module.backbone.prefix(self._module.normalise(given), self.depth)

    def of_rows(self, source: Source, rows: Tensor, seed: int, view: int = 0) -> Tensor:
        """The outputs for some images in one view."""
        ((images, _),) = source.read([Picks(rows, rows)], view_generator(seed, view))
        return self(images)

    def is_unchanged(self) -> bool:
        """Whether its weights are what they were when this was made."""
        # Not by the tensors' versions: those who average weights write past them, through `data`.
        return self._sums == self._bit_sums()

    @property
    def rounding(self) -> float:
        """What may be lost in one rounding, as a share of the value, in the coarsest type that it computes in."""
        precision, device = str(self._trainer.precision), self._trainer.strategy.root_device
        if "bf16" in precision:
            return torch.finfo(torch.bfloat16).eps
        # GPUs convolve float32 in TF32, which has the digits of float16, unless they are told not to.
        is_half = "16" in precision or device.type == "cuda"
        return torch.finfo(torch.float16 if is_half else torch.float32).eps

    def identity(self) -> str:
        """What differs between two frozen parts that may give something else for an image."""
        normalise = self._module.normalise
        settings = [self._trainer.precision, torch.__version__, normalise.mean.tolist(), normalise.std.tolist()]
        return json.dumps([self._hash, self.depth, *settings])

    def _tensors(self) -> dict[str, Tensor]:
        stages = list(self._module.backbone.stage_modules().values())[: self.depth]
        parts = [part for parts in stages for part in parts]
        return {f"{i}.{name}": value for i, part in enumerate(parts) for name, value in part.state_dict().items()}

    def _weights_hash(self) -> str:
        tensors = self._tensors()
        return f"{hash_tensors(tensors.values())} {sorted(tensors)}"

    def _bit_sums(self) -> list[int]:
        """Sums of the tensors' bits, which take no time beside a hash, where the tensors are."""
        sums = [value.view(_INTEGERS[value.itemsize]).sum() for value in self._tensors().values()]
        return torch.stack(sums).tolist() if sums else []
