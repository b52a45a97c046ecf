"""Callback that caches the features of frozen stages once a phase."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lit_ft.compat import setup_validation_loaders
from lit_ft.console import rank_zero_print
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.protocols import Readable
from lit_ft.errors import UserError
from lit_ft.features.decision import NUM_VIEWS, CacheOptions, DType
from lit_ft.features.facts import find_loaders
from lit_ft.features.folder import node_folder, remove_files
from lit_ft.features.phase import CachedPhase
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_run
from lit_ft.unfreezing.view import run_plan, run_starts


class FeatureCache(Callback):
    """Caches the features of the frozen stages once a phase, and trains the other stages from them.

    While the first stages are frozen, their output for an image does not change. So each image passes through them once
    a phase, in training and in validation, and each epoch costs only what the other stages cost. The files are mapped
    into memory. They lie in the folder ``features`` of the run (``features-node0`` and so on with several nodes) until
    the phase ends. A resumed run finds them there, and computes damaged ones again.

    Without augmentation, numbers change by rounding only. With it, each image has a few augmented views, of which each
    epoch draws one at random. One line a phase says what is cached, and why something is not: nothing is cached where
    it would save nothing, as in a phase of one epoch, or would be wrong, as where images are mixed.

    Args:
        views: Number of augmented views of each training image. 0 turns the cache off.
        limit: Largest total size of the files, in GB. Fewer views are cached to fit, or none.
        dtype: Type in which features are stored. auto stores them as they are computed, or as float16 if those files
            would exceed the limit.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, views: int = NUM_VIEWS, limit: float = 10.0, dtype: DType = "auto") -> None:
        self.options = CacheOptions(views, limit, dtype)
        self._reset()

    def _reset(self) -> None:
        self._folder: Path | None = None
        self._phase: CachedPhase | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the folder of a fit."""
        self._reset()
        if stage != "fit":
            return
        if not isinstance(pl_module, FineTuneModule):
            raise UserError(f"FeatureCache: {type(pl_module).__name__} is no FineTuneModule; leave the callback out")
        if run := find_run(trainer):
            self._folder = node_folder(trainer, run)
            logger = trainer.logger
            if logger is not None and not isinstance(logger, (TensorBoardLogger, CSVLogger)):
                # The runs of an online service share a folder, and each would remove what others cache.
                name = trainer.strategy.broadcast(f"{logger.name}-{logger.version}")
                self._folder = node_folder(trainer, Run(run.folder / name))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the images, also in an epoch that is resumed in the middle."""
        if self._is_on(trainer):
            if trainer.enable_validation:  # the decision is for both splits at once
                setup_validation_loaders(trainer)
            _log_other_loaders(trainer, cast(FineTuneModule, pl_module))
        self._replace_images(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the images, as the loaders may be new."""
        self._replace_images(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replaces the images in a validation within a fit."""
        if not trainer.sanity_checking:
            self._replace_images(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the files; those of an interrupted run stay for the run that resumes it."""
        for loader in find_loaders(trainer)[0].values():
            loader.stand_in = None
        folder = self._folder
        self._reset()  # first, as Windows removes no file that is mapped
        if folder is not None:
            trainer.strategy.barrier("features")
            remove_files(trainer, folder)

    def _is_on(self, trainer: L.Trainer) -> bool:
        is_short = bool(cast(Any, trainer).fast_dev_run)
        return self._folder is not None and self.options.views != 0 and not is_short

    def _replace_images(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._is_on(trainer):
            for split, loader in find_loaders(trainer)[0].items():
                # Called at an epoch's first batch, when all callbacks have settled what is frozen in it.
                loader.stand_in = partial(self._choose_source, trainer, cast(FineTuneModule, module), split)

    def _choose_source(self, trainer: L.Trainer, module: FineTuneModule, split: str, loader: Loader) -> Readable:
        """The cached features of a split in this epoch, or its images."""
        index, stages = len(run_starts(trainer, module, trainer.current_epoch)) - 1, module.fixed_prefix()
        if self._phase is None or (self._phase.index, self._phase.stages) != (index, stages):
            self._phase = None  # first, as Windows removes no file that is mapped
            self._phase = CachedPhase(trainer, module, cast(Path, self._folder), index, stages)
            self._phase.begin(self.options)
        return self._phase.read_split(split, loader) or loader.source


def _log_other_loaders(trainer: L.Trainer, module: FineTuneModule) -> None:
    """Logs which splits have loaders that give images only, if a stage is ever frozen."""
    first = next(iter(module.stage_modules()))
    splits = find_loaders(trainer)[1]
    if splits and any(first not in phase.trainable for phase in run_plan(trainer, module).phases):
        rank_zero_print(f"Features  {' and '.join(splits)} not cached: not loaded by a data module of lit_ft")
