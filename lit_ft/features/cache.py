"""Callback that caches the features of frozen stages once a phase."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_ft.compat import setup_train_data, setup_validation_loaders
from lit_ft.console import format_path, rank_zero_print
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.protocols import Readable
from lit_ft.errors import UserError
from lit_ft.features.decision import NUM_VIEWS, CacheOptions, DType, PhaseFacts, SplitFacts, decide, format_decision
from lit_ft.features.layout import Layout
from lit_ft.features.source import FeatureSource, FrozenStages, find_own_hook, find_own_step
from lit_ft.features.store import FeatureFile, remove_files
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_run
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.preconditions import epochs_of_steps, is_replicated
from lit_ft.unfreezing.view import run_plan, run_starts


class FeatureCache(Callback):
    """Caches the features of the frozen stages once a phase, and trains the other stages from them.

    While the first stages are frozen, their output for an image does not change. So each image passes through them once
    a phase, in training and in validation, and each epoch costs only what the other stages cost. The files are mapped
    into memory. They lie in the folder ``features`` of the run (``features-node0`` and so on with several nodes) until
    the phase ends. A resumed run finds them there, and computes damaged ones again. In a folder that is given they
    stay, for other runs that freeze the same stages with the same weights, images and precision.

    Without augmentation, numbers change by rounding only. With it, each image has a few augmented views, of which each
    epoch draws one at random. One line a phase says what is cached, and why something is not: nothing is cached where
    it would save nothing, as in a phase of one epoch, or would be wrong, as where images are mixed.

    Args:
        views: Number of augmented views of each training image. 0 turns the cache off.
        limit: Largest total size of the files, in GB. Fewer views are cached to fit, or none.
        dtype: Type in which features are stored. auto stores them as they are computed, or as float16 if those files
            would exceed the limit.
        folder: Folder in which files stay for other runs, up to the limit; null keeps them with the run until a phase
            ends, as several nodes do in any case.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self, views: int = NUM_VIEWS, limit: float = 10.0, dtype: DType = "auto", folder: str | None = None
    ) -> None:
        self.options = CacheOptions(views, limit, dtype)
        self.folder = None if folder is None else Path(folder).expanduser()
        self._reset()

    def _reset(self) -> None:
        self._folder: Path | None = None
        self._phase: _CachedPhase | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the folder of a fit."""
        self._reset()
        if stage != "fit":
            return
        if not isinstance(pl_module, FineTuneModule):
            raise UserError(f"FeatureCache: {type(pl_module).__name__} is no FineTuneModule; leave the callback out")
        if run := find_run(trainer):
            logger = trainer.logger
            if logger is not None and not isinstance(logger, (TensorBoardLogger, CSVLogger)):
                # The runs of an online service share a folder, and each would remove what others cache.
                run = Run(run.folder / trainer.strategy.broadcast(f"{logger.name}-{logger.version}"))
            # Nodes may share a file system, and one could remove the folder that another has just made.
            self._folder = run.features(trainer.node_rank if trainer.num_nodes > 1 else None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the images, also in an epoch that is resumed in the middle."""
        if self._is_on(trainer):
            if trainer.enable_validation:  # the decision is for both splits at once
                setup_validation_loaders(trainer)
            first, splits = next(iter(cast(FineTuneModule, pl_module).stage_modules())), _find_loaders(trainer)[1]
            if splits and any(first not in phase.trainable for phase in run_plan(trainer, pl_module).phases):
                rank_zero_print(f"Features  {' and '.join(splits)} not cached: not loaded by a data module of lit_ft")
        self._replace_images(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the images, as the loaders may be new."""
        self._replace_images(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the images in a validation within a fit, and in Lightning's check before it if that can be."""
        if not trainer.sanity_checking or self._knows_first_phase(trainer, pl_module):
            self._replace_images(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the files; those of an interrupted run stay for the run that resumes it."""
        for loader in _find_loaders(trainer)[0].values():
            loader.stand_in = None
        folder = self._folder
        self._reset()  # first, as Windows removes no file that is mapped
        if folder is not None:
            trainer.strategy.barrier("features")
            remove_files(trainer, folder)

    def _is_on(self, trainer: L.Trainer) -> bool:
        is_short = bool(cast(Any, trainer).fast_dev_run)
        return self._folder is not None and self.options.views != 0 and not is_short

    def _knows_first_phase(self, trainer: L.Trainer, module: L.LightningModule) -> bool:
        """Whether it is known, before training starts, what is frozen first and which images are trained on."""
        can_replace = isinstance(trainer.val_dataloaders, Loader) and self._is_on(trainer) and trainer.ckpt_path is None
        if not can_replace or not cast(FineTuneModule, module).fixed_prefix():
            return False
        setup_train_data(trainer)  # the decision is for both splits at once
        return True

    def _replace_images(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._is_on(trainer):
            for split, loader in _find_loaders(trainer)[0].items():
                # Called at an epoch's first batch, when all callbacks have settled what is frozen in it.
                loader.stand_in = partial(self._choose_source, trainer, cast(FineTuneModule, module), split)

    def _choose_source(self, trainer: L.Trainer, module: FineTuneModule, split: str, loader: Loader) -> Readable:
        """The cached features of a split in this epoch, or its images."""
        index, stages = len(run_starts(trainer, module, trainer.current_epoch)) - 1, module.fixed_prefix()
        if self._phase is None or (self._phase.index, self._phase.stages) != (index, stages):
            self._phase = None  # first, as Windows removes no file that is mapped
            folders = cast(Path, self._folder), self.folder if trainer.num_nodes == 1 else None
            self._phase = _CachedPhase(trainer, module, folders, index, stages, self.options)
        return self._phase.read_split(split, loader) or loader.source


class _CachedPhase:
    """The features that are cached in a phase with these frozen stages, in the folder of this machine, or a shared one.

    When made, it removes the files of other phases, and decides what is cached.
    """

    def __init__(
        self, trainer: L.Trainer, module: FineTuneModule, folders: tuple[Path, Path | None], index: int,
        stages: tuple[str, ...], options: CacheOptions,
    ) -> None:  # fmt: skip
        folder, self._kept = folders
        self._limit = options.limit
        self.index = index
        self.stages = stages
        self._trainer = trainer
        self._module = module
        self._folder = folder
        self._frozen: FrozenStages | None = None  # until a split is worth caching
        self._sources: dict[str, FeatureSource | None] = {}
        self._changed: set[str] = set()
        trainer.strategy.barrier("features")
        remove_files(trainer, folder, but=f"phase{index}-")
        run, nodes = Run(folder.parent), trainer.num_nodes
        own = {run.features(node) for node in range(nodes)} if nodes > 1 else {run.features()}
        for stray in {run.features(), *run.folder.glob(run.features("[0-9]*").name)} - own:
            remove_files(trainer, stray)  # which the run left when it ran on another number of nodes
        facts = _collect_facts(trainer, module, index, stages)
        self._decision = decide(facts, options, self._measure)
        if self._decision.layouts or self._decision.reasons:
            rank_zero_print(format_decision(self._decision, facts, format_path(self._kept or folder)))

    def _measure(self) -> Layout:
        """The layout of the features of an image."""
        self._frozen = FrozenStages(self._trainer, self._module, len(self.stages))
        source = next(iter(_find_loaders(self._trainer)[0].values())).source
        return Layout.like(self._frozen.compute_views(source, torch.arange(min(2, len(source))), seed=0, views=1))

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
            features = self._open(self._frozen, split, loader).read()
            if isinstance(features, str):
                rank_zero_print(f"Features  {split} not cached: {features}")
            self._sources[split] = None if isinstance(features, str) else features
        return self._sources[split]

    def _open(self, frozen: FrozenStages, split: str, loader: Loader) -> FeatureFile:
        """The file of a split: that for all runs, or where these would have too much then, the run's own."""
        trainer, layout = self._trainer, self._decision.layouts[split]
        if self._kept is not None:
            file = FeatureFile(trainer, frozen, layout, loader, self._kept, None, split)
            if file.fits(self._limit):
                return file
            full = f"{format_path(self._kept)} would exceed `feature_cache.limit` {self._limit:g} GB"
            rank_zero_print(f"Features  {split} cached in {format_path(self._folder)}, as {full}")
        return FeatureFile(trainer, frozen, layout, loader, self._folder, self.index, split)


def _find_loaders(trainer: L.Trainer) -> tuple[dict[str, Loader], list[str]]:
    """The loaders of a fit whose images can be replaced, by split, and the splits with other loaders."""
    loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
    ours = {split: loader for split, loader in loaders.items() if isinstance(loader, Loader)}
    return ours, [split for split, loader in loaders.items() if loader is not None and split not in ours]


def _collect_facts(trainer: L.Trainer, module: FineTuneModule, index: int, stages: tuple[str, ...]) -> PhaseFacts:
    """The facts of a phase that has begun, in which these stages are frozen."""
    plan = run_plan(trainer, module)
    phase, start = plan.phases[index], run_starts(trainer, module, trainer.current_epoch)[index]
    ends = [epochs_of_steps(trainer), phase.latest_end, run_epochs(trainer)]
    if phase.num_epochs is not None and index < len(plan.phases) - 1:  # the last one lasts to the end
        ends.append(start + phase.num_epochs)
    end = min(end for end in ends if end is not None)
    every = trainer.check_val_every_n_epoch or 1
    passes = {"train": end - start, "val": end if math.isinf(end) else end // every - start // every}
    loaders, _ = _find_loaders(trainer)
    return PhaseFacts(
        stages=stages,
        splits={name: _collect_split_facts(trainer, module, name, loaders[name], passes[name]) for name in loaders},
        first_epoch=start,
        num_epochs=end - start,
        ends_by_plateau=phase.plateau is not None,
        has_moving_norms=not stages and next(iter(module.stage_modules())) not in phase.trainable,
    )


def _collect_split_facts(
    trainer: L.Trainer, module: FineTuneModule, split: str, loader: Loader, num_passes: float
) -> SplitFacts:
    run: Any = trainer
    batches = trainer.num_training_batches if split == "train" else sum(run.num_val_batches)
    step = "training_step" if split == "train" else "validation_step"
    return SplitFacts(
        num_images=len(loader.source),
        num_passes=num_passes,
        is_augmented=loader.source.is_augmented,
        is_read_whole=batches >= len(loader),
        is_mixed=split == "train" and module.objective.mix.is_on,
        is_reloaded=bool(run.reload_dataloaders_every_n_epochs),
        batch_hook=find_own_hook(module, run.datamodule),
        own_step=find_own_step(module, step),
        sharded_by=None if is_replicated(trainer.strategy) else type(trainer.strategy).__name__,
    )
