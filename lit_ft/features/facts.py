"""Facts of a run on which the caching decision is made."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from lit_ft.data.loading.loader import Loader
from lit_ft.features.decision import PhaseFacts, SplitFacts
from lit_ft.model.module import FineTuneModule
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.preconditions import epochs_of_steps, is_replicated
from lit_ft.unfreezing.view import run_plan, run_starts

_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_STEPS = {"train": "training_step", "val": "validation_step"}


def find_loaders(trainer: L.Trainer) -> tuple[dict[str, Loader], list[str]]:
    """The loaders of a fit whose images can be replaced, by split, and the splits with other loaders."""
    loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
    ours = {split: loader for split, loader in loaders.items() if isinstance(loader, Loader)}
    return ours, [split for split, loader in loaders.items() if loader is not None and split not in ours]


def collect_facts(trainer: L.Trainer, module: FineTuneModule, index: int, stages: tuple[str, ...]) -> PhaseFacts:
    """The facts of a phase that has begun.

    Args:
        trainer: The trainer.
        module: The model.
        index: Index of the phase.
        stages: The frozen stages whose output is the same in each epoch, from the first stage on.
    """
    plan = run_plan(trainer, module)
    phase, start = plan.phases[index], run_starts(trainer, module, trainer.current_epoch)[index]
    ends = [epochs_of_steps(trainer), phase.latest_end, run_epochs(trainer)]
    if phase.num_epochs is not None and index < len(plan.phases) - 1:  # the last one lasts to the end
        ends.append(start + phase.num_epochs)
    end = min(end for end in ends if end is not None)
    every = trainer.check_val_every_n_epoch or 1
    passes = {"train": end - start, "val": end if math.isinf(end) else end // every - start // every}
    loaders, _ = find_loaders(trainer)
    return PhaseFacts(
        stages=stages,
        splits={
            split: _collect_split_facts(trainer, module, split, loader, passes[split])
            for split, loader in loaders.items()
        },
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
    hooks = [
        hook
        for hook in _BATCH_HOOKS
        if _is_overridden(module, hook, L.LightningModule)
        or _is_overridden(run.datamodule, hook, L.LightningDataModule)
    ]
    steps = [step for step in (_STEPS[split], "forward") if _is_overridden(module, step, FineTuneModule)]
    return SplitFacts(
        num_images=len(loader.source),
        num_passes=num_passes,
        is_augmented=loader.source.is_augmented,
        is_read_whole=batches >= len(loader),
        is_mixed=split == "train" and module.objective.mix.is_on,
        is_reloaded=bool(run.reload_dataloaders_every_n_epochs),
        batch_hook=hooks[0] if hooks else None,
        own_step=f"{type(module).__name__}.{steps[0]}" if steps else None,
        sharded_by=None if is_replicated(trainer.strategy) else type(trainer.strategy).__name__,
    )


def _is_overridden(owner: object, name: str, base: type) -> bool:
    """Whether a method is not that of a base class; ``False`` without an owner."""
    method = getattr(owner, name, None)
    return method is not None and getattr(method, "__func__", method) is not getattr(base, name)
