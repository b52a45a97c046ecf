"""Preconditions of a plan: what a trainer, a module and a checkpoint must fulfil, checked before training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.compat import BATCH_NORM, epochs_done
from lit_ft.errors import UserError
from lit_ft.optim.run_length import RunLength
from lit_ft.unfreezing.plan import Plan


def refuse_unstaged(module: L.LightningModule) -> None:
    """Refuses a module without stages.

    Raises:
        UserError: If it names no stages, or they do not hold every parameter exactly once.
    """
    if not isinstance(module, Staged):
        raise UserError(
            f"GradualUnfreezing: {type(module).__name__} names no stages; derive it from lit_ft.Staged, too, and "
            "define its stage_modules()"
        )
    module.check_stages()


def check_plan(trainer: L.Trainer, module: L.LightningModule, plan: Plan, frozen_norm: FrozenNorm) -> None:
    """Refuses a plan that the trainer or the module cannot carry out, before any training.

    Raises:
        UserError: If they cannot.
    """
    refuse_sharding(trainer.strategy, plan)
    stages = cast(Staged, module).stage_modules()
    refuse_averaging(cast(Any, trainer).callbacks, stages, plan, frozen_norm)
    refuse_unseen_plateaus(trainer, plan)
    warn_of_early_stopping(trainer, plan)
    if plan.undecided and not module.automatic_optimization:
        raise UserError("`unfreeze.strategy`: auto measures the losses of training_step, which must be automatic")


def is_replicated(strategy: Any) -> bool:
    """Whether each process holds the whole model, alone or in a wrapper that can be renewed."""
    others = (DeepSpeedStrategy, XLAStrategy)  # no DDP, although derived from it
    return isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) and not isinstance(strategy, others)


def refuse_sharding(strategy: Any, plan: Plan) -> None:
    """Refuses to unfreeze where a process does not hold the whole model, alone or in a wrapper that can be renewed.

    Raises:
        UserError: If the plan has several phases and the strategy shards.
    """
    if len(plan.phases) > 1 and not is_replicated(strategy):
        name = type(strategy).__name__
        raise UserError(
            f"`trainer.strategy`: {name} cannot unfreeze stages in mid-run; use ddp, or a plan of one phase"
        )


def refuse_unseen_plateaus(trainer: L.Trainer, plan: Plan) -> None:
    """Refuses a plateau that the run cannot reach.

    Raises:
        UserError: If nothing is validated, or the phase is too short.
    """
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


def warn_of_early_stopping(trainer: L.Trainer, plan: Plan) -> None:
    """Warns where early stopping could end the run before its last phase has begun."""
    last = plan.phases[-1].first_epoch
    if any(phase.plateau for phase in plan.phases[:-1]):
        last = plan.phases[-2].latest_end or last
    for callback in cast(Any, trainer).callbacks:
        if isinstance(callback, EarlyStopping):
            # The first check sets the best value, and as many as the patience must then go by.
            interval = trainer.val_check_interval
            checks = round(1 / interval) if isinstance(interval, float) and interval > 0 else 1
            every = trainer.check_val_every_n_epoch or 1
            earliest = math.ceil((callback.patience + 1) / checks) * every
            if earliest <= last:
                rank_zero_warn(
                    f"`early_stopping.patience`: {callback.patience} can end the run after {earliest} epochs, but the "
                    f"plan's last phase begins after {last}; raise it to {math.ceil(last / every) * checks} or more"
                )


def refuse_another_plan(saved: Sequence[Mapping[str, Any]] | None, plan: Plan) -> None:
    """Refuses to resume a checkpoint with other phases.

    Args:
        saved: The phases of the checkpoint's plan, if it has one, in plain types.
        plan: The plan of this run.

    Raises:
        UserError: If other stages train in a phase.
    """
    if saved is None:
        return
    stages = [list(phase["trainable"]) for phase in saved]
    if stages != [list(phase.trainable) for phase in plan.phases]:
        phases = "; ".join(", ".join(names) for names in stages)
        raise UserError(
            f"`unfreeze`: the checkpoint is of a run with other phases ({phases}); give the same, or start from its "
            "weights with `model.weights`"
        )


def refuse_missing_in_optimizers(
    trainer: L.Trainer, module: L.LightningModule, plan: Plan, frozen_norm: FrozenNorm
) -> None:
    """Refuses to unfreeze parameters that no optimizer has, which would have no effect.

    Raises:
        UserError: If a parameter that will train is in no optimizer.
    """
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    for phase in plan.phases:
        trained = {id(p) for p in cast(Staged, module).trainable_parameters(phase.trainable, frozen_norm)}
        for name, parameter in module.named_parameters():
            if id(parameter) in trained - optimized:
                raise UserError(
                    f"{type(module).__name__}.configure_optimizers: {name} shall train from epoch {phase.first_epoch} "
                    "on, but no optimizer has it; give the optimizer all parameters, as those without a gradient are "
                    "left alone"
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
    """Refuses a number of steps that ends the run before its last phase.

    Raises:
        UserError: If there are too few.
    """
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

    Args:
        callbacks: The trainer's callbacks.
        stages: The modules of each stage.
        plan: The plan; that pass is in its last phase.
        frozen_norm: What norm layers of frozen stages do.

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
