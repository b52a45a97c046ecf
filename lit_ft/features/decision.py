"""The caching decision: which splits are cached in a phase, in how many views and in which type, or why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from lit_ft.console import format_bytes
from lit_ft.errors import UserError
from lit_ft.features.layout import Layout
from lit_ft.unfreezing.view import format_epoch_span

DType = Literal["auto", "float32", "float16", "bfloat16"]

NUM_VIEWS = 2
"""Augmented views of each image: more gain little, and each costs as much as an epoch without a cache, or nearly."""


@dataclass(frozen=True)
class CacheOptions:
    """Options of `FeatureCache`, with the same meaning; raises `UserError` if one is out of range."""

    views: int = NUM_VIEWS
    limit: float = 10.0
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        if self.views < 0:
            raise UserError(f"`feature_cache.views`: must be at least 0, got {self.views}")
        if self.limit <= 0:
            raise UserError(
                f"`feature_cache.limit`: must be above 0 GB, got {self.limit}; to cache nothing, set views to 0"
            )
        if self.dtype not in get_args(DType):
            raise UserError(f"`feature_cache.dtype`: {self.dtype} is none of {', '.join(get_args(DType))}")


@dataclass(frozen=True)
class SplitFacts:
    """Facts of a split in a phase."""

    num_images: int
    num_passes: float = math.inf  # over it in the phase: epochs or validations; infinite if the run has no end
    is_augmented: bool = False  # whether an image is read differently each time
    is_read_whole: bool = True  # whether each pass reads all images
    is_mixed: bool = False  # whether images are mixed with one another, or partly erased
    is_reloaded: bool = False  # whether its loader is made anew during the run
    batch_hook: str | None = None  # name of an overridden hook that can change batches
    own_step: str | None = None  # name of a user's step or ``forward``, which can use the images
    sharded_by: str | None = None  # name of a strategy that can hold only a part of the weights


@dataclass(frozen=True)
class PhaseFacts:
    """Facts of a phase."""

    stages: tuple[str, ...]  # frozen, and with the same output in each epoch, from the first stage on
    splits: Mapping[str, SplitFacts]  # those that can be cached
    first_epoch: int = 0
    num_epochs: float = math.inf  # at most; infinite if the run has no end
    ends_by_plateau: bool = False  # whether it can end earlier
    has_moving_norms: bool = False  # whether the output of frozen stages changes, as their norms follow the batches


@dataclass(frozen=True)
class Decision:
    """What is cached in a phase: the layouts of the files by split, and the reasons why other splits are not cached."""

    layouts: Mapping[str, Layout]
    reasons: Mapping[str, str]


def decide(phase: PhaseFacts, options: CacheOptions, measure: Callable[[], Layout]) -> Decision:
    """Decides what is cached in a phase.

    ``measure`` computes the layout of the features of an image; it is called only if a split is worth caching.
    """
    if not phase.stages:
        moving = "`unfreeze.frozen_norm` lets norm layers of frozen stages change"
        return Decision({}, dict.fromkeys(phase.splits, moving) if phase.has_moving_norms else {})
    views = {split: options.views if facts.is_augmented else 1 for split, facts in phase.splits.items()}
    refused = {split: reason for split in phase.splits if (reason := _reason_against(split, views[split], phase))}
    if len(refused) == len(phase.splits):
        return Decision({}, refused)
    features = measure()
    wanted = {
        split: replace(features, images=facts.num_images, views=views[split])
        for split, facts in phase.splits.items()
        if split not in refused
    }
    candidates = _candidates(wanted, options.dtype)
    for layouts in candidates:
        if _total(layouts) <= options.limit * 1e9:
            return Decision(layouts, refused)
    least = format_bytes(_total(candidates[-1]))
    too_large = f"{least} would exceed `feature_cache.limit` {options.limit:g} GB"
    return Decision({}, refused | dict.fromkeys(wanted, too_large))


def format_decision(decision: Decision, phase: PhaseFacts, folder: Path) -> str:
    """One line that says what is cached in a folder, and what is not and why."""
    parts = []
    if decision.layouts:
        cached = " and ".join(
            f"{split} ({layout.images:,} images{f' in {layout.views} augmented views' if layout.views > 1 else ''})"
            for split, layout in decision.layouts.items()
        )
        types = ", ".join({str(layout.stored).removeprefix("torch.") for layout in decision.layouts.values()})
        stages = phase.stages[0] if len(phase.stages) == 1 else f"{phase.stages[0]} to {phase.stages[-1]}"
        parts.append(f"{stages} cached for {cached}, {format_bytes(_total(decision.layouts))} as {types} in {folder}")
    for reason in dict.fromkeys(decision.reasons.values()):
        splits = [split for split, own in decision.reasons.items() if own == reason]
        parts.append(f"{' and '.join(splits)} not cached: {reason}")
    is_open = phase.ends_by_plateau or math.isinf(phase.num_epochs)
    epochs = format_epoch_span(phase.first_epoch, None if is_open else int(phase.num_epochs))
    plural, plateau = "" if epochs.isdigit() else "s", ", to a plateau" if phase.ends_by_plateau else ""
    return f"Features  epoch{plural} {epochs}{plateau}: {'; '.join(parts)}"


def _reason_against(split: str, views: int, phase: PhaseFacts) -> str | None:
    """Why cached features cannot replace the images of a split, or would save little."""
    facts, epochs = phase.splits[split], phase.num_epochs
    reasons = (
        (facts.sharded_by, f"`trainer.strategy` {facts.sharded_by} may hold only a part of the weights"),
        (facts.batch_hook, f"{facts.batch_hook} may change its batches"),
        (facts.own_step, f"{facts.own_step} may use its images"),
        (facts.is_reloaded, "`trainer.reload_dataloaders_every_n_epochs` may change its images"),
        (facts.is_mixed, "`model.mix` changes its images"),
        (not facts.is_read_whole, "no epoch reads all of its images"),
        (epochs <= 1, "the phase has one epoch"),
        (split == "val" and facts.num_passes <= 1, f"the phase has {'one' if facts.num_passes else 'no'} validation"),
        # Each view costs as much as an epoch without a cache, but for the decoding, and gives no new one.
        (views >= epochs, f"{views} augmented views would save little in {epochs:g} epochs"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _candidates(wanted: Mapping[str, Layout], dtype: DType) -> list[dict[str, Layout]]:
    """Layouts from the best to the smallest: in each type that is allowed, then with ever fewer augmented views."""
    types = [None, torch.float16] if dtype == "auto" else [getattr(torch, dtype)]
    most = max(layout.views for layout in wanted.values())
    return [
        {
            split: replace(layout, views=min(layout.views, views), stored=stored or layout.computed)
            for split, layout in wanted.items()
        }
        for views in range(most, min(most, NUM_VIEWS) - 1, -1)
        for stored in types
    ]


def _total(layouts: Mapping[str, Layout]) -> int:
    return sum(layout.nbytes for layout in layouts.values())
