"""Cached features of one phase."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from lit_ft.console import format_path, rank_zero_print
from lit_ft.data.loading.loader import Loader
from lit_ft.features.decision import CacheOptions, Decision, decide, format_decision
from lit_ft.features.facts import collect_facts, find_loaders
from lit_ft.features.folder import remove_files, remove_strays
from lit_ft.features.frozen_stages import FrozenStages
from lit_ft.features.layout import Layout
from lit_ft.features.source import FeatureSource
from lit_ft.features.store import FeatureFile
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run


class CachedPhase:
    """The features that are cached in a phase.

    Args:
        trainer: The trainer.
        module: The model.
        folder: Folder of this machine's files.
        index: Index of the phase.
        stages: The frozen stages whose output is the same in each epoch, from the first stage on.
    """

    def __init__(
        self, trainer: L.Trainer, module: FineTuneModule, folder: Path, index: int, stages: tuple[str, ...]
    ) -> None:
        self.index = index
        self.stages = stages
        self._trainer = trainer
        self._module = module
        self._folder = folder
        self._frozen: FrozenStages | None = None  # until a split is worth caching
        self._decision = Decision({}, {})
        self._sources: dict[str, FeatureSource | None] = {}
        self._changed: set[str] = set()

    def begin(self, options: CacheOptions) -> None:
        """Removes the files of other phases, and decides what is cached."""
        self._trainer.strategy.barrier("features")
        remove_files(self._trainer, self._folder, but=f"phase{self.index}-")
        remove_strays(self._trainer, Run(self._folder.parent))
        facts = collect_facts(self._trainer, self._module, self.index, self.stages)
        self._decision = decide(facts, options, self._measure)
        if self._decision.layouts or self._decision.reasons:
            rank_zero_print(format_decision(self._decision, facts, format_path(self._folder)))

    def read_split(self, split: str, loader: Loader) -> FeatureSource | None:
        """The cached features of a split, or ``None`` if its images must be read."""
        if self._frozen is None or split not in self._decision.layouts:
            return None
        if not self._trainer.strategy.reduce_boolean_decision(self._frozen.is_unchanged(), all=True):
            # Weight averaging swaps the weights for each validation and restores them, so this is checked each time.
            if split not in self._changed:
                self._changed.add(split)
                rank_zero_print(f"Features  {split} read from images: the weights of frozen stages have changed")
            return None
        if split not in self._sources:
            layout = self._decision.layouts[split]
            file = FeatureFile(self._trainer, self._frozen, layout, loader, self._folder, self.index, split)
            features = file.read()
            if isinstance(features, str):
                rank_zero_print(f"Features  {split} not cached: {features}")
            self._sources[split] = None if isinstance(features, str) else features
        return self._sources[split]

    def _measure(self) -> Layout:
        """The layout of the features of an image."""
        self._frozen = FrozenStages(self._trainer, self._module, len(self.stages))
        loaders, _ = find_loaders(self._trainer)
        source = next(iter(loaders.values())).source
        features = self._frozen.compute_rows(source, torch.arange(min(2, len(source))), seed=0)
        return Layout.like(features, images=1, views=1)
