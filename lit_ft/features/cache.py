"""Decides what a frozen part of the network computes just once a phase: `FeatureCache` keeps it, and trains from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_ft.console import format_bytes, format_path, rank_zero_print
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.protocols import Readable
from lit_ft.errors import UserError
from lit_ft.features.frozen_part import FrozenPart
from lit_ft.features.source import FeatureSource, Layout, told
from lit_ft.features.store import FeatureFile, node_folder, remove_files, remove_strays
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_run
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.plan import Phase
from lit_ft.unfreezing.preconditions import epochs_of_steps, is_replicated
from lit_ft.unfreezing.view import run_plan, run_starts, told_span

DType = Literal["auto", "float32", "float16", "bfloat16"]

VIEWS = 2
"""Versions of each augmented image: more gain little, and each costs as much as an epoch does without."""

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class FeatureCache(Callback):
    """Computes the output of the frozen part of the network once a phase, and trains the rest from that.

    While the first stages are frozen, their output for an image does not change. So each image goes through them once
    in a phase, in training and in validation, and every epoch costs just what the other stages cost. The outputs lie in
    files in the folder ``features`` of the run, or ``features-node0`` and so on where there are several nodes, mapped
    into memory, until the phase is over; a run that is resumed finds them there, and computes anew what was damaged.

    Without augmentation this changes no number but by rounding. With it, each image has some versions, of which each
    epoch draws one at random. What was chosen, and why, is told in one line a phase. Nothing is kept where it would
    not pay, as in a phase of one epoch, or where it would not hold, as where images are mixed.

    Args:
        views: Number of versions of each training image, if these are augmented. 0 turns all of this off.
        limit: What the files may take together at most, in GB. Fewer views are kept to fit, or none.
        dtype: What outputs are kept in. auto keeps them as they are computed, or as float16 where that does not fit.

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(self, views: int = VIEWS, limit: float = 10.0, dtype: DType = "auto") -> None:
        if views < 0:
            raise UserError(f"`feature_cache.views`: must be at least 0, got {views}")
        if limit <= 0:
            raise UserError(f"`feature_cache.limit`: must be above 0 GB, got {limit}; to keep nothing, set views to 0")
        if dtype not in get_args(DType):
            raise UserError(f"`feature_cache.dtype`: {dtype} is none of {', '.join(get_args(DType))}")
        self.views = views
        self.limit = limit
        self.dtype = dtype
        self._forget()

    def _forget(self) -> None:
        self._folder: Path | None = None
        # The number of the phase that the rest is of, and what is frozen in it.
        self._of: tuple[int, tuple[str, ...]] | None = None
        self._layouts: dict[str, Layout] = {}
        self._sources: dict[str, FeatureSource | None] = {}
        self._changed: set[str] = set()
        self._part: FrozenPart | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Forgets what an earlier fit kept."""
        self._forget()
        if stage != "fit":
            return
        if not isinstance(pl_module, FineTuneModule):
            raise UserError(f"FeatureCache: {type(pl_module).__name__} is no FineTuneModule; leave the callback out")
        if run := find_run(trainer):
            self._folder = node_folder(trainer, run)
            logger = trainer.logger
            if logger is not None and not isinstance(logger, (TensorBoardLogger, CSVLogger)):
                # Of a service: its runs share a folder, and each would remove what others keep.
                name = trainer.strategy.broadcast(f"{logger.name}-{logger.version}")
                self._folder = node_folder(trainer, Run(run.folder / name))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stands in for the images, also in an epoch that is resumed in the middle."""
        if self._is_on(trainer):
            if trainer.enable_validation:
                # Lightning waits for the first epoch that validates; what is kept is decided for both splits at once.
                trainer.fit_loop.epoch_loop.val_loop.setup_data()
            self._tell_foreign(trainer, cast(FineTuneModule, pl_module))
        self._stand_in(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stands in for the images, as the loaders may be new."""
        self._stand_in(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stands in for the images in a validation that is part of a fit."""
        if not trainer.sanity_checking:
            self._stand_in(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the files; those of an interrupted run stay, for the one that takes it up again."""
        for loader in _loaders(trainer).values():
            loader.stand_in = None
        folder = self._folder
        self._forget()  # first, as Windows removes no file that is mapped
        if folder is not None:
            trainer.strategy.barrier("features")
            remove_files(trainer, folder)

    def _stand_in(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for split, loader in _loaders(trainer).items() if self._is_on(trainer) else ():
            # Asked at an epoch's first batch, when all callbacks have settled what is frozen in it.
            loader.stand_in = partial(self._in_place_of_images, trainer, cast(FineTuneModule, module), split)

    def _is_on(self, trainer: L.Trainer) -> bool:
        is_short = bool(cast(Any, trainer).fast_dev_run)
        return self._folder is not None and self.views != 0 and not is_short

    def _in_place_of_images(self, trainer: L.Trainer, module: FineTuneModule, split: str, loader: Loader) -> Readable:
        """What a split is read from in this epoch: outputs that were kept, or the images themselves."""
        of = len(run_starts(trainer, module, trainer.current_epoch)) - 1, module.fixed_prefix()
        if of != self._of:
            self._begin(trainer, module, *of)
        if self._part is None or split not in self._layouts:
            return loader.source
        if not trainer.strategy.reduce_boolean_decision(self._part.is_unchanged(), all=True):
            # Weight averaging does so for each validation, and undoes it: no state is kept, for a run that is resumed.
            if split not in self._changed:
                self._changed.add(split)
                rank_zero_print(f"Features  {split} from images, as the weights of frozen stages have changed")
            return loader.source
        if split not in self._sources:
            self._sources[split] = self._kept(trainer, self._part, split, loader)
        return self._sources[split] or loader.source

    def _kept(self, trainer: L.Trainer, part: FrozenPart, split: str, loader: Loader) -> FeatureSource | None:
        """The outputs of a split, if they can be kept."""
        folder, (index, _) = cast(Path, self._folder), cast(tuple[int, Any], self._of)
        outputs = FeatureFile(trainer, part, self._layouts[split], loader, folder, index, split).read()
        if isinstance(outputs, FeatureSource):
            return outputs
        rank_zero_print(f"Features  {split} from images after all, as {outputs}")
        return None

    def _begin(self, trainer: L.Trainer, module: FineTuneModule, index: int, stages: Sequence[str]) -> None:
        """Decides what is kept in a phase, and tells it."""
        self._of, self._part = (index, tuple(stages)), None
        self._layouts, self._sources, self._changed = {}, {}, set()
        trainer.strategy.barrier("features")
        folder = cast(Path, self._folder)
        remove_files(trainer, folder, but=f"phase{index}-")
        remove_strays(trainer, Run(folder.parent))
        phase = self._phase(trainer, module, index)
        loaders = _loaders(trainer)
        if not stages:
            if next(iter(module.stage_modules())) not in phase.trainable:
                self._tell(stages, phase, dict.fromkeys(loaders, "frozen stages still move, by `unfreeze.frozen_norm`"))
            return
        views, reasons = self._views(trainer, module, phase, loaders)
        if views:
            self._part = FrozenPart(trainer, module, len(stages))
            source = next(iter(loaders.values())).source
            example = self._part.of_rows(source, torch.arange(min(2, len(source))), seed=0)
            wanted = {split: Layout.of(example, len(loaders[split].source), n) for split, n in views.items()}
            choice = self._layouts_of(wanted)
            self._layouts = next((layouts for layouts in choice if _total(layouts) <= self.limit * 1e9), {})
            if not self._layouts:
                least = format_bytes(_total(choice[-1]))
                reasons |= dict.fromkeys(wanted, f"{least} would exceed `feature_cache.limit` {self.limit:g} GB")
        self._tell(stages, phase, reasons)

    @staticmethod
    def _phase(trainer: L.Trainer, module: FineTuneModule, index: int) -> Phase:
        """A phase that has begun, with the epochs that it has, as far as is known, in this run."""
        plan = run_plan(trainer, module)
        phase, start = plan.phases[index], run_starts(trainer, module, trainer.current_epoch)[index]
        ends = [epochs_of_steps(trainer), phase.latest_end, run_epochs(trainer)]
        if phase.num_epochs is not None and index < len(plan.phases) - 1:  # the last one lasts to the end
            ends.append(start + phase.num_epochs)
        end = min(end for end in ends if end is not None)
        return replace(phase, first_epoch=start, num_epochs=None if math.isinf(end) else int(end) - start)

    def _views(
        self, trainer: L.Trainer, module: FineTuneModule, phase: Phase, loaders: Mapping[str, Loader]
    ) -> tuple[dict[str, int], dict[str, str]]:
        """How many versions are kept of the images of each split, or why none is."""
        start, every = phase.first_epoch, trainer.check_val_every_n_epoch or 1
        epochs = passes = math.inf
        if phase.num_epochs is not None:
            epochs, passes = phase.num_epochs, (start + phase.num_epochs) // every - start // every
        views, reasons = {}, {}
        for split, loader in loaders.items():
            number = self.views if loader.source.is_augmented else 1
            if reason := _reason_against(trainer, module, split, loader):
                reasons[split] = reason
            elif epochs <= 1:
                reasons[split] = "the phase has one epoch"
            elif split == "val" and passes <= 1:
                reasons[split] = f"the phase has {'one validation' if passes else 'no validation'}"
            elif number >= epochs:  # each costs as much as an epoch does without
                reasons[split] = f"{number} views would not pay in {epochs:g} epochs"
            else:
                views[split] = number
        return views, reasons

    def _layouts_of(self, wanted: Mapping[str, Layout]) -> list[dict[str, Layout]]:
        """What is wanted, in the types that may be taken, then with ever fewer views of augmented images."""
        types = [None, torch.float16] if self.dtype == "auto" else [getattr(torch, self.dtype)]
        most = max(layout.views for layout in wanted.values())
        return [
            {
                split: replace(layout, views=min(layout.views, views), stored=stored or layout.computed)
                for split, layout in wanted.items()
            }
            for views in range(most, min(most, VIEWS) - 1, -1)
            for stored in types
        ]

    def _tell_foreign(self, trainer: L.Trainer, module: FineTuneModule) -> None:
        """Tells which loaders nothing can stand in for, if any stage is ever frozen."""
        first = next(iter(module.stage_modules()))
        foreign = [split for split, loader in _given(trainer).items() if not isinstance(loader, Loader)]
        if foreign and any(first not in phase.trainable for phase in run_plan(trainer, module).phases):
            rank_zero_print(
                f"Features  {' and '.join(foreign)} from images, as what loads them is of no data module of lit_ft"
            )

    def _tell(self, stages: Sequence[str], phase: Phase, reasons: Mapping[str, str]) -> None:
        once = [
            f"{split} ({layout.images:,} images{f' in {layout.views} views' if layout.views > 1 else ''})"
            for split, layout in self._layouts.items()
        ]
        parts = []
        if once:
            types = ", ".join({told(layout.stored) for layout in self._layouts.values()})
            where = f"{format_bytes(_total(self._layouts))} as {types} in {format_path(cast(Path, self._folder))}"
            frozen = stages[0] if len(stages) == 1 else f"{stages[0]} to {stages[-1]}"
            parts.append(f"{frozen} computed once for {' and '.join(once)}, {where}")
        for reason in dict.fromkeys(reasons.values()):
            splits = [split for split, own in reasons.items() if own == reason]
            parts.append(f"{' and '.join(splits)} from images, as {reason}")
        epochs = told_span(phase.first_epoch, None if phase.plateau else phase.num_epochs)
        epochs = f"epoch{'' if epochs.isdigit() else 's'} {epochs}{', to a plateau' if phase.plateau else ''}"
        rank_zero_print(f"Features  {epochs}: {'; '.join(parts)}")


def _given(trainer: L.Trainer) -> dict[str, Any]:
    """What a fit reads from, by split."""
    given = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
    return {split: loader for split, loader in given.items() if loader is not None}


def _loaders(trainer: L.Trainer) -> dict[str, Loader]:
    """The loaders of a fit that something can stand in for."""
    return {split: loader for split, loader in _given(trainer).items() if isinstance(loader, Loader)}


def _reason_against(trainer: L.Trainer, module: FineTuneModule, split: str, loader: Loader) -> str | None:
    """Why the outputs for a split cannot stand in for its images, or would be computed in vain."""
    if not is_replicated(trainer.strategy):
        return f"`trainer.strategy` {type(trainer.strategy).__name__} may hold only a part of the weights"
    data: Any = cast(Any, trainer).datamodule
    if hooks := [hook for hook in _HOOKS if is_overridden(hook, module) or is_overridden(hook, data)]:
        return f"{hooks[0]} may change its batches"
    step = {"train": "training_step", "val": "validation_step"}[split]
    if own := [name for name in (step, "forward") if is_overridden(name, module, FineTuneModule)]:
        return f"{type(module).__name__}.{own[0]} may look at its images"
    if cast(Any, trainer).reload_dataloaders_every_n_epochs:
        return "`trainer.reload_dataloaders_every_n_epochs` may change its images"
    if split == "train" and module.mix.is_on:
        return "`model.mix` changes its batches"
    batches = trainer.num_training_batches if split == "train" else sum(cast(Any, trainer.num_val_batches))
    if batches < len(loader):
        return "no epoch sees all of its images"
    return None


def _total(layouts: Mapping[str, Layout]) -> int:
    return sum(layout.nbytes for layout in layouts.values())
