"""Decides how a plan is carried out in a run: `GradualUnfreezing` makes the phase of each epoch so, on every rank."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

from lit_ft.backbones.backbone import FrozenNorm
from lit_ft.errors import UserError
from lit_ft.plan import HEAD, PhaseConfig, Plan, Strategy, make_plan


class GradualUnfreezing(Callback):
    """Trains in each epoch the stages that the plan names, and freezes all others.

    It works by level: at the start of each epoch, and on resume, the phase is looked up and applied. Under DDP a new
    phase wraps the model anew, because DDP reduces only the gradients of parameters that were trainable when it
    wrapped (https://github.com/Lightning-AI/pytorch-lightning/issues/20340).

    The module must be a `FineTuneModule`, or have its ``stage_modules`` and ``set_trainable``.

    Args:
        strategy: full trains everything, linear_probe the head alone, gradual thaws a stage after the other, deepest
            first, lp_ft the head and then everything, phases what is listed there.
        head_epochs: Epochs in which gradual and lp_ft train the head alone.
        epochs_per_stage: Epochs between two thaws of gradual.
        phases: For strategy phases: a list of {train: [stage names or patterns], epochs: n}.
        frozen_norm: What norm layers of frozen stages do: eval nothing, stats follow the batches, train train on.

    Raises:
        UserError: At the start of a fit, if the plan does not fit the model or the run.
    """

    def __init__(
        self,
        strategy: Strategy = "lp_ft",
        head_epochs: int = 1,
        epochs_per_stage: int = 1,
        phases: list[PhaseConfig] | None = None,
        frozen_norm: FrozenNorm = "eval",
    ) -> None:
        self.strategy = strategy
        self.head_epochs = head_epochs
        self.epochs_per_stage = epochs_per_stage
        self.phases = None if phases is None else [PhaseConfig(**p) if isinstance(p, dict) else p for p in phases]
        self.frozen_norm = frozen_norm
        self.plan: Plan | None = None
        # The names of the parameters that DDP reduces the gradients of.
        self._reduced: frozenset[str] = frozenset()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the plan, and refuses one that cannot be carried out, before any training."""
        if stage != "fit":
            return
        module = cast(Any, pl_module)
        stages = [name for name in module.backbone.stage_modules() if name != HEAD]
        endless = cast(Any, trainer).fast_dev_run or trainer.max_epochs in (None, -1)
        max_epochs = None if endless else trainer.max_epochs
        self.plan = make_plan(self.strategy, stages, max_epochs, self.epochs_per_stage, self.head_epochs, self.phases)
        sharded = not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(
            trainer.strategy, FSDPStrategy
        )
        if sharded and len(self.plan.phases) > 1:
            name = type(trainer.strategy).__name__
            raise UserError(
                f"--trainer.strategy: {name} cannot thaw stages in mid-run; use ddp, or a plan of one phase"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes what DDP wrapped."""
        self._reduced = _trainable(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells each parameter group when it thaws, and applies the phase of this epoch, also on resume inside it."""
        batches = trainer.num_training_batches
        steps_per_epoch = 0 if math.isinf(batches) else math.ceil(batches / trainer.accumulate_grad_batches)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["thaw_step"] = 0
        # By what trains rather than by the stage's name: frozen_norm can let a frozen stage's norm layers train.
        for phase in reversed(cast(Plan, self.plan).phases):
            cast(Any, pl_module).set_trainable(phase.trainable, self.frozen_norm)
            for group in groups:
                if any(parameter.requires_grad for parameter in group["params"]):
                    group["thaw_step"] = phase.first_epoch * steps_per_epoch
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the phase of the epoch."""
        self._apply(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives every rank the buffers of rank 0, as DDP does before a forward pass, so that replicas end equal."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """The plan, for those who look into a checkpoint."""
        return {"plan": None if self.plan is None else _plain_plan(self.plan)}

    def _apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        plan = cast(Plan, self.plan)
        index = plan.phase_index(trainer.current_epoch)
        _check_ranks_agree(trainer, index)
        cast(Any, pl_module).set_trainable(plan.phases[index].trainable, self.frozen_norm)
        trainable = _trainable(pl_module)
        if isinstance(trainer.strategy, DDPStrategy) and trainable != self._reduced:
            _wrap_anew(trainer.strategy)
        self._reduced = trainable


def _trainable(module: L.LightningModule) -> frozenset[str]:
    return frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def _check_ranks_agree(trainer: L.Trainer, index: int) -> None:
    if trainer.world_size > 1:
        indices = [index] * trainer.world_size
        torch.distributed.all_gather_object(indices, index)
        if len(set(indices)) > 1:
            raise RuntimeError(f"the processes disagree on the phase of epoch {trainer.current_epoch}: {indices}")


def _wrap_anew(strategy: DDPStrategy) -> None:
    """Wraps the bare module once more; replicas are equal already, so nothing is sent."""
    strategy.model = strategy.lightning_module
    kwargs = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**kwargs, "init_sync": False}
    strategy.configure_ddp()
    strategy._ddp_kwargs = kwargs


def _plain_plan(plan: Plan) -> list[dict[str, Any]]:
    return [{**asdict(phase), "trainable": list(phase.trainable)} for phase in plan.phases]
