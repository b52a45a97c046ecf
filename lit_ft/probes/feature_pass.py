"""The feature pass: the pooled output of every stage for each image, computed once and kept between runs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_ft.backbones.backbone import Backbone
from lit_ft.console import log_progress
from lit_ft.data.files.derived_cache import Derived, hash_tensors, load_derived
from lit_ft.data.files.derived_rows import DerivedRows
from lit_ft.data.loading.protocols import ImageSource
from lit_ft.data.loading.sampler import Picks, seed_view


@dataclass(frozen=True)
class StageFeatures:
    """Pooled outputs of the stages for N images.

    Args:
        stages: Features of each stage, shallow to deep, ``(N, C)``; those of the last are what a head takes ``(N, D)``.
        seconds: How long they took to compute, when that was.
    """

    stages: dict[str, Tensor]
    seconds: float

    @property
    def last(self) -> Tensor:
        """The features ``(N, D)`` that a head takes."""
        return next(reversed(self.stages.values()))


def compute_stage_features(
    backbone: Backbone,
    normalise: nn.Module,
    source: ImageSource,
    batch_size: int = 32,
    view: int = 0,
    seed: int = 0,
    only_last: bool = False,
    rows: range | None = None,
) -> StageFeatures:
    """The pooled output of every stage for all images of a source, from one pass.

    They are written to the cache folder batch by batch and mapped into memory, and found again for the same weights,
    images and view.

    Args:
        backbone: The backbone, in eval mode; where it is, there they are computed.
        normalise: From uint8 images to what the backbone takes.
        source: The images.
        batch_size: Number of images in a batch.
        view: Which random view, if the source is augmented.
        seed: Seed of the views.
        only_last: Compute and keep the last stage's alone, unless those of all are kept already.
        rows: Which images; all when not given.
    """
    rows = range(len(source)) if rows is None else rows
    names = list(backbone.stages)
    weights = hash_tensors([*backbone.state_dict().values(), *normalise.buffers()])
    content = [weights, source.identity(), [view, seed] if source.is_augmented else None, [*rows[:1], *rows[-1:]]]

    def is_valid(found: Derived) -> bool:
        arrays = [found[0].get(name) for name in names]
        return all(one is not None and one.shape[:1] == (len(rows),) for one in arrays)

    found = load_derived("features", json.dumps([*content, names]))
    if only_last and (found is None or not is_valid(found)):
        names = names[-1:]
        found = load_derived("features", json.dumps([*content, names]))
    if found is None or not is_valid(found):
        with DerivedRows("features", json.dumps([*content, names]), len(rows)) as written:
            found = _compute(backbone, normalise, source, batch_size, seed_view(seed, view), names, rows, written)
    return StageFeatures({name: found[0][name] for name in names}, float(found[1]["seconds"]))


def _compute(
    backbone: Backbone,
    normalise: nn.Module,
    source: ImageSource,
    batch_size: int,
    generator: torch.Generator,
    names: list[str],
    rows: range,
    written: DerivedRows,
) -> Derived:
    def fill() -> Iterator[int]:
        device = next(backbone.parameters()).device
        parts = torch.split(torch.arange(rows.start, rows.stop), batch_size)
        read = source.read([Picks(part, part) for part in parts], generator)
        for part, (images, _) in zip(parts, read, strict=True):
            with torch.inference_mode():
                given = normalise(images.to(device))
                # Of the last stage alone without the outputs of the others, which would all stay in memory.
                pooled = {names[0]: backbone(given)} if len(names) == 1 else pool_stages(backbone, given)
            written.write(int(part[0]) - rows.start, pooled)
            yield len(part)

    began = time.perf_counter()
    log_progress("Features", fill(), len(rows))
    return written.finish({"seconds": time.perf_counter() - began})


def pool_stages(backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
    """The output of each stage for normalised images ``(B, C, H, W)``, averaged over all places, ``(B, C)``.

    The last one goes through the backbone's own pooling.
    """
    outputs = backbone.activations(images)
    pooled = {name: average_places(values) for name, values in outputs.items()}
    last = next(reversed(outputs))
    pooled[last] = backbone.pool(outputs[last])
    return pooled


def average_places(values: Tensor) -> Tensor:
    """The mean over the places of a map ``(B, C, H, W)`` or ``(B, H, W, C)``, or over tokens ``(B, N, C)``: ``(B, C)``.

    >>> average_places(torch.ones(2, 8, 4, 4)).shape, average_places(torch.ones(2, 4, 4, 8)).shape
    (torch.Size([2, 8]), torch.Size([2, 8]))
    """
    if values.ndim == 4:
        return values.mean(dim=(1, 2) if has_channels_last(values.shape) else (2, 3))
    return values.flatten(1, -2).mean(dim=1) if values.ndim > 2 else values


def has_channels_last(shape: Sequence[int]) -> bool:
    """Whether the channels of a map are its last axis, as in Swin, where the sides of a square map stand first.

    >>> has_channels_last((2, 8, 4, 4)), has_channels_last((2, 4, 4, 8))
    (False, True)
    """
    return shape[1] == shape[2] != shape[3]
