"""Batches of cached features in place of images, and the frozen stages that compute them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.files.derived_cache import hash_tensors
from lit_ft.data.loading.protocols import ImageSource
from lit_ft.data.loading.sampler import Picks, seed_view
from lit_ft.features.layout import Layout
from lit_ft.model.first_batch import refuse_other_size
from lit_ft.model.module import FineTuneModule
from lit_ft.own_code import is_overridden

_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FeatureSource:
    """Cached features of a split, read in place of its images.

    Args:
        features: The features in the file's memory order, ``(views * N, ...)``, on any device.
        layout: Their layout.
        source: The images.
        depth: Number of stages that the features have passed through.
    """

    def __init__(self, features: Tensor, layout: Layout, source: ImageSource, depth: int) -> None:
        self._features = features
        self._layout = layout
        self._source = source
        self._depth = depth

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[tuple[StageOutput, Tensor]]:
        """Yields each batch, with a random augmented view of each image."""
        views = torch.randint(self._layout.views, (self._layout.images,), generator=generator)
        for rows, places in batches:
            where = views[places] * self._layout.images + rows
            # Else each batch would wait until a GPU has done the step before.
            values = self._features.index_select(0, where.to(self._features.device, non_blocking=True))
            yield StageOutput(self._layout.decode(values), self._depth), self._source.split.targets[rows]

    def fill(self, compute: Callable[[Tensor], Tensor], rows: range, batch_size: int, seed: int) -> Iterator[int]:
        """Fills in the features of some images in all views, and yields the number of images of each finished batch.

        Args:
            compute: Images ``(B, C, H, W)`` to features ``(B, ...)``.
            rows: Which images; other processes can fill in the others.
            batch_size: Number of images in a batch, each view of an image being one; at least all views of an image.
            seed: Seed of the augmentation; each view augments as an epoch of its own does, without a shuffle.
        """
        views = self._layout.views
        size = max(1, batch_size // views)
        batches = [torch.arange(start, min(start + size, rows.stop)) for start in rows[::size]]
        read = self._source.read_views([Picks(part, part) for part in batches], _seed_views(seed, views))
        for part, (images, _) in zip(batches, read, strict=True):
            self._features[self._layout.places(part)] = self._layout.encode(compute(images))
            yield views * len(part)


class FrozenStages:
    """The first ``depth`` stages of a model, with the weights that they have now."""

    def __init__(self, trainer: L.Trainer, module: FineTuneModule, depth: int) -> None:
        self._trainer = trainer
        self._module = module
        self.depth = depth
        tensors = self._tensors()
        self._hash = f"{hash_tensors(tensors.values())} {sorted(tensors)}"
        self._sums = self._sum_bits()

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, ...)`` of images ``(B, C, H, W)`` as loaders yield them."""
        with torch.inference_mode(), self._trainer.precision_plugin.forward_context():
            given = self._trainer.strategy.batch_to_device(self._trainer.precision_plugin.convert_input(images))
            try:
                return self._module.backbone.prefix(self._module.normalise(given), self.depth)
            except (RuntimeError, AssertionError) as error:  # as of the model's own forward pass
                refuse_other_size(given, self._module.input_spec.size, error)
                raise

    def compute_views(self, source: ImageSource, rows: Tensor, seed: int, views: int) -> Tensor:
        """Features of some images ``(n,)``, those of all views of an image in a row, ``(n * views, ...)``."""
        ((images, _),) = source.read_views([Picks(rows, rows)], _seed_views(seed, views))
        return self(images)

    def is_unchanged(self) -> bool:
        """Whether the weights are those with which this was made."""
        # Not by the tensors' versions: weight averaging writes past them, through `data`.
        return self._sums == self._sum_bits()

    @property
    def rounding(self) -> float:
        """Relative rounding error of the coarsest type in which the stages compute."""
        precision, device = str(self._trainer.precision), self._trainer.strategy.root_device
        if "bf16" in precision:
            return torch.finfo(torch.bfloat16).eps
        # By default GPUs convolve float32 in TF32, which has as many digits as float16.
        is_half = "16" in precision or device.type == "cuda"
        return torch.finfo(torch.float16 if is_half else torch.float32).eps

    def identity(self) -> str:
        """A text that differs between stages that can give different features for an image."""
        normalise = self._module.normalise
        settings = [self._trainer.precision, torch.__version__, normalise.mean.tolist(), normalise.std.tolist()]
        return json.dumps([self._hash, self.depth, *settings])

    def _tensors(self) -> dict[str, Tensor]:
        stages = list(self._module.backbone.stage_modules().values())[: self.depth]
        parts = [part for parts in stages for part in parts]
        return {f"{i}.{name}": value for i, part in enumerate(parts) for name, value in part.state_dict().items()}

    def _sum_bits(self) -> list[int]:
        """Sums of the tensors' bits, computed where the tensors are, in far less time than a hash."""
        sums = [_as_integers(value).sum() for value in self._tensors().values()]
        return torch.stack(sums).tolist() if sums else []


def _seed_views(seed: int, views: int) -> list[torch.Generator]:
    return [seed_view(seed, view) for view in range(views)]


def _as_integers(value: Tensor) -> Tensor:
    """The bits of a tensor as integers ``(n,)``, of 64 bits if they can be, as torch sums only those as they are."""
    as_it_lies = value.permute(sorted(range(value.ndim), key=value.stride, reverse=True)).reshape(-1)  # copies nothing
    is_whole = value.nbytes % 8 == 0 and value.storage_offset() * value.itemsize % 8 == 0
    return as_it_lies.view(torch.int64 if is_whole else _INTEGERS[value.itemsize])


def find_own_hook(module: FineTuneModule, data: Any) -> str | None:
    """A hook of a user's that changes a batch of images between loader and step, which would get features instead."""
    owners = ((module, L.LightningModule), (data, L.LightningDataModule))
    return next(
        (hook for hook in _BATCH_HOOKS if any(is_overridden(owner, hook, base) for owner, base in owners)), None
    )


def find_own_step(module: FineTuneModule, step: str) -> str | None:
    """A step or forward pass of a user's, which may need images."""
    steps = (step, "forward")
    return next((f"{type(module).__name__}.{one}" for one in steps if is_overridden(module, one, FineTuneModule)), None)
