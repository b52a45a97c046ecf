"""Preconditions of a plan: what a trainer, a module and a checkpoint must fulfil, checked before training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn

from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.compat import BATCH_NORM, epochs_done
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.model.sharding import is_sharding, refuse_local_steps, refuse_sharded_resume
from lit_ft.optim.run_length import RunLength
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.unfreezing.plan import Plan


def refuse_plan(trainer: L.Trainer, module: L.LightningModule, plan: Plan, frozen_norm: FrozenNorm) -> None:
    """Raises `UserError` if the trainer or the module cannot carry out a plan, before any training."""
    # Other modules shard themselves, in their own ways.
    can_unfreeze = isinstance(module, FineTuneModule) and is_sharding(trainer.strategy)
    if len(plan.phases) > 1 and not (can_unfreeze or is_replicated(trainer.strategy)):
        raise UserError(
            f"`trainer.strategy`: {type(trainer.strategy).__name__} cannot unfreeze stages in mid-run; use ddp, or a "
            "plan of one phase"
        )
    if isinstance(trainer.strategy, DDPStrategy) and is_replicated(trainer.strategy):
        refuse_local_steps(trainer.strategy)
    refuse_sharded_resume(trainer, plan.stages, [phase.trainable for phase in plan.phases])
    refuse_averaging(cast(Any, trainer).callbacks, cast(Staged, module).stage_modules(), plan, frozen_norm)
    for phase in plan.phases:
        if phase.plateau is None:
            continue
        if not trainer.enable_validation:
            raise UserError("`unfreeze.plateau`: the run validates nothing, so that no plateau would ever be seen")
        checks = phase.plateau.patience + (phase.plateau.baseline is None)
        needed = checks * (trainer.check_val_every_n_epoch or 1)
        if phase.num_epochs is not None and needed > phase.num_epochs:
            raise UserError(
                f"`unfreeze.plateau.patience`: {phase.plateau.patience} needs {needed} epochs, but the phase of "
                f"{', '.join(phase.trainable)} lasts {phase.num_epochs} at most; lower it, or give more epochs"
            )
    _warn_of_early_stopping(trainer, plan)
    if plan.undecided and not module.automatic_optimization:
        raise UserError("`unfreeze.strategy`: auto measures the losses of training_step, which must be automatic")


def is_replicated(strategy: Any) -> bool:
    """Whether each process holds the whole model, alone or in a wrapper that can be renewed."""
    others = (DeepSpeedStrategy, XLAStrategy)  # no DDP, although derived from it
    return isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and not isinstance(strategy, others)


def _warn_of_early_stopping(trainer: L.Trainer, plan: Plan) -> None:
    """Warns where early stopping could end the run before its last phase has begun."""
    last = plan.phases[-1].first_epoch
    if any(phase.plateau for phase in plan.phases[:-1]):
        last = plan.phases[-2].latest_end or last
    interval, every = trainer.val_check_interval, trainer.check_val_every_n_epoch or 1
    checks = round(1 / interval) if isinstance(interval, float) and interval > 0 else 1
    for callback in trainer.early_stopping_callbacks:
        # The first check sets the best value, and as many as the patience must then go by.
        earliest = math.ceil((callback.patience + 1) / checks) * every
        if earliest <= last:
            rank_zero_warn(
                f"`early_stopping.patience`: {callback.patience} can end the run after {earliest} epochs, but the "
                f"plan's last phase begins after {last}; raise it to {math.ceil(last / every) * checks} or more"
            )


def warn_of_head_epochs(head_epochs: int) -> None:
    """Warns of epochs of the head alone that are asked for, but left out as it is solved."""
    if head_epochs > 1:
        rank_zero_warn(
            f"`unfreeze.head_epochs`: {head_epochs} has no effect, as a solved head takes no epochs; leave it out, or "
            "give `unfreeze.head_fit` trained, and a `model.lr` for a head that is new, such as 1e-3"
        )


def refuse_another_plan(saved: Sequence[Mapping[str, Any]] | None, plan: Plan) -> None:
    """Raises `UserError` if other stages train in a phase than in the plan of a checkpoint, if that has one."""
    stages = [list(phase["trainable"]) for phase in saved or ()]
    if saved is not None and stages != [list(phase.trainable) for phase in plan.phases]:
        phases = "; ".join(", ".join(names) for names in stages)
        raise UserError(
            f"`unfreeze`: the checkpoint is of a run with other phases ({phases}); give the same, or start from its "
            "weights with `model.weights`"
        )


def refuse_missing_in_optimizers(
    trainer: L.Trainer, module: L.LightningModule, plan: Plan, frozen_norm: FrozenNorm
) -> None:
    """Raises `UserError` if a parameter that will train is in no optimizer, where that would have no effect."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for phase in plan.phases:
        trained = cast(Staged, module).trainable_parameters(phase.trainable, frozen_norm)
        missing = {id(parameter) for parameter in trained} - optimized
        if left := [name for key, name in names.items() if key in missing]:
            raise UserError(
                f"{type(module).__name__}.configure_optimizers: {left[0]} shall train from epoch {phase.first_epoch} "
                "on, but no optimizer has it; give the optimizer all parameters, as those without a gradient are left "
                "alone"
            )


def epochs_of_steps(trainer: L.Trainer) -> float:
    """After how many epochs ``trainer.max_steps`` ends a run; infinite where it does not."""
    length = RunLength.of(trainer)
    if trainer.max_steps <= 0 or math.isinf(length.epoch_steps) or cast(Any, trainer).fast_dev_run:
        return math.inf
    # From here on, as the epochs before may have had other lengths.
    epochs, batches = epochs_done(trainer)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    return epochs + math.ceil((length.max_steps - trainer.global_step + steps) / length.epoch_steps)


def refuse_too_few_steps(trainer: L.Trainer, plan: Plan) -> None:
    """Raises `UserError` if the number of steps ends the run before its last phase."""
    epochs, last = epochs_of_steps(trainer), plan.phases[-1].first_epoch
    if epochs <= last:
        raise UserError(
            f"`trainer.max_steps`: {trainer.max_steps} steps end the run after {epochs} epochs, but the last phase of "
            f"the plan begins after {last}; raise it, or list fewer phases"
        )


def refuse_averaging(
    callbacks: Iterable[Callback], stages: Mapping[str, Sequence[nn.Module]], plan: Plan, frozen_norm: FrozenNorm
) -> None:
    """Refuses stochastic weight averaging that would lose the statistics of frozen batch norm.

    After the last epoch Lightning's callback resets all statistics and estimates them in one more pass over the data,
    in which frozen layers estimate none: they would keep mean 0 and variance 1.

    Raises:
        UserError: If a stage with batch norm is frozen in the last phase.
    """
    if frozen_norm != "eval" or not any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        return
    frozen = [
        name
        for name, parts in stages.items()
        if name not in plan.phases[-1].trainable
        and any(isinstance(module, BATCH_NORM) for part in parts for module in part.modules())
    ]
    if frozen:
        raise UserError(
            "`trainer.callbacks`: StochasticWeightAveraging would reset the batch norm of the stages that stay frozen "
            f"({', '.join(frozen)}); unfreeze them in the last phase, give `unfreeze.frozen_norm` stats, or use "
            "EMAWeightAveraging"
        )
