"""Batches of cached features in place of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.protocols import Source
from lit_ft.data.loading.sampler import Picks, mix_seed
from lit_ft.features.layout import Layout

_STREAM = 2
"""Stream of `mix_seed` for augmented views, apart from those for the order and for the epochs' augmentation."""


class FeatureSource:
    """Cached features of a split, read in place of its images.

    Args:
        features: The features in the file's memory order, ``(views * N, ...)``, on any device.
        layout: Their layout.
        source: The images.
        depth: Number of stages that the features have passed through.
    """

    def __init__(self, features: Tensor, layout: Layout, source: Source, depth: int) -> None:
        self._features = features
        self._layout = layout
        self._source = source
        self._depth = depth

    def read(self, batches: Sequence[Picks], generator: torch.Generator) -> Iterator[tuple[StageOutput, Tensor]]:
        """Yields each batch, with a random augmented view of each image."""
        views = torch.randint(self._layout.views, (self._layout.images,), generator=generator)
        for rows, places in batches:
            where = views[places] * self._layout.images + rows
            values = self._features.index_select(0, where.to(self._features.device))
            yield StageOutput(self._layout.decode(values), self._depth), self._source.split.targets[rows]


def compute_features(
    features: Tensor,
    layout: Layout,
    source: Source,
    compute: Callable[[Tensor], Tensor],
    rows: range,
    batch_size: int,
    seed: int,
) -> Iterator[int]:
    """Fills in the features of some images in all views, and yields the number of images of each finished batch.

    Args:
        features: Where to, as `Layout.map_file` returns it.
        layout: Its layout.
        source: The images; each view augments them as an epoch of its own does, without a shuffle.
        compute: Images ``(B, C, H, W)`` to features ``(B, ...)``.
        rows: Which images; other processes can fill in the others.
        batch_size: Number of images in a batch.
        seed: Seed of the augmentation.
    """
    batches = [torch.arange(start, min(start + batch_size, rows.stop)) for start in rows[::batch_size]]
    for view in range(layout.views):
        images_of_view = source.read([Picks(part, part) for part in batches], seed_view(seed, view))
        for part, (images, _) in zip(batches, images_of_view, strict=True):
            features[view * layout.images + part] = layout.encode(compute(images))
            yield len(part)


def seed_view(seed: int, view: int) -> torch.Generator:
    """The random generator of the augmentation of a view."""
    return torch.Generator().manual_seed(mix_seed(seed, view, _STREAM))
