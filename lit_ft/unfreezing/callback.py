"""Decides how a plan is carried out in a run: `GradualUnfreezing` makes the phase of each epoch so, on every rank."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.compat import forget_files_elsewhere, keep_last_batch, validate_first
from lit_ft.console import rank_zero_print
from lit_ft.errors import UserError, unknown
from lit_ft.optim.run_schedule import enter_epoch
from lit_ft.unfreezing import preconditions as refusals
from lit_ft.unfreezing.gradients import choose, relative_gradients
from lit_ft.unfreezing.plan import PhaseConfig, Plan, PlateauConfig
from lit_ft.unfreezing.strategies import Strategy, make_plan


class GradualUnfreezing(Callback):
    """Trains in each epoch the stages that the plan names, and freezes all others.

    It works by level: at the start of each epoch, and on resume, the phase is looked up and applied. Under DDP a new
    phase wraps the model anew, because DDP reduces only the gradients of parameters that were trainable when it
    wrapped (https://github.com/Lightning-AI/pytorch-lightning/issues/20340).

    The module must be a `FineTuneModule`, or any other LightningModule that names its stages, by `Staged`.

    Args:
        strategy: full trains everything, linear_probe the head alone, gradual thaws a stage after the other, deepest
            first, plateau likewise, each when a metric has stopped to improve, lp_ft the head and then everything,
            auto the head and then the stages with the largest gradients, phases what is listed there.
        head_epochs: Epochs in which gradual, lp_ft and auto train the head alone; in lp_ft with a plateau, at most.
        epochs_per_stage: Epochs between two thaws of gradual.
        phases: For strategy phases: a list of {train: [stage names or patterns], epochs: n, plateau: {...}}.
        plateau: For plateau, and for the first phase of lp_ft: when a phase ends; null is two epochs without a new
            best for plateau, and nothing else than head_epochs for lp_ft.
        frozen_norm: What norm layers of frozen stages do: eval nothing, stats follow the batches, train train on.
        auto_threshold: For auto: a stage is chosen whose relative gradient is at least this share of the largest one.
        auto_batches: For auto: the number of training batches in which gradients are measured.

    Raises:
        UserError: At the start of a fit, if the plan does not fit the model or the run.
    """

    def __init__(
        self,
        strategy: Strategy = "lp_ft",
        head_epochs: int = 1,
        epochs_per_stage: int = 1,
        phases: list[PhaseConfig] | None = None,
        plateau: PlateauConfig | None = None,
        frozen_norm: FrozenNorm = "eval",
        auto_threshold: float = 0.5,
        auto_batches: int = 8,
    ) -> None:
        if not 0.0 < auto_threshold <= 1.0:
            raise UserError(f"`unfreeze.auto_threshold`: must be above 0 and at most 1, got {auto_threshold}")
        if auto_batches < 1:
            raise UserError(f"`unfreeze.auto_batches`: must be at least 1, got {auto_batches}")
        self.strategy = strategy
        self.head_epochs = head_epochs
        self.epochs_per_stage = epochs_per_stage
        self.phases = None if phases is None else [_phase(phase) for phase in phases]
        self.plateau = _plateau(plateau)
        self.frozen_norm = frozen_norm
        self.auto_threshold = auto_threshold
        self.auto_batches = auto_batches
        self.plan: Plan | None = None
        self._forget()
        # The names of the parameters that DDP reduces the gradients of.
        self._reduced: frozenset[str] = frozenset()

    def _forget(self) -> None:
        """Leaves what an earlier fit decided."""
        # What decides the phases that follow from the run: the metrics of each epoch, and the measured gradients.
        self.scores: dict[int, dict[str, float]] = {}
        self.gradients: dict[str, float] = {}
        # The first epochs of the phases that have begun: also a run that is resumed for longer keeps to them.
        self.starts: list[int] = [0]
        self._saved: list[dict[str, Any]] | None = None

    def make_plan(self, module: L.LightningModule, max_epochs: int | None) -> Plan:
        """The plan for a module, as far as it is decided.

        Args:
            module: Its stages are the plan's.
            max_epochs: Length of the run in epochs; ``None`` where it has none.

        Raises:
            UserError: If the module names no stages, or the plan does not fit them.
        """
        if not isinstance(module, Staged):
            raise UserError(
                f"GradualUnfreezing: {type(module).__name__} names no stages; derive it from lit_ft.Staged, too, and "
                "define its stage_modules()"
            )
        module.check_stages()
        plan = make_plan(
            self.strategy,
            list(module.stage_modules()),
            max_epochs,
            self.epochs_per_stage,
            self.head_epochs,
            self.phases,
            self.plateau,
            choose(self.gradients, self.auto_threshold),
        )
        modes = cast(Any, module).monitored() if hasattr(module, "monitored") else {}
        return replace(plan, phases=tuple(replace(p, plateau=_settled(p.plateau, modes)) for p in plan.phases))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the plan, and refuses one that cannot be carried out, before any training."""
        if stage != "fit":
            return
        if trainer.current_epoch == 0:  # else a second fit of the same trainer goes on from there
            self._forget()
        self.plan = self.make_plan(pl_module, run_epochs(trainer))
        refusals.refuse_sharding(trainer.strategy, self.plan)
        stages = cast(Staged, pl_module).stage_modules()
        refusals.refuse_averaging(cast(Any, trainer).callbacks, stages, self.plan, self.frozen_norm)
        refusals.refuse_unseen_plateaus(trainer, self.plan)
        refusals.warn_of_early_stopping(trainer, self.plan)
        if self.strategy == "auto" and not pl_module.automatic_optimization:
            raise UserError("`unfreeze.strategy`: auto measures the losses of training_step, which must be automatic")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes what DDP wrapped, and makes the plan again, of which a checkpoint may have decided more.

        Raises:
            UserError: If a checkpoint is of another plan, or no optimizer has what will train.
        """
        self._reduced = _trainable(pl_module)
        self.plan = self.make_plan(pl_module, run_epochs(trainer))
        if self._saved is not None:
            refusals.refuse_another_plan([phase["trainable"] for phase in self._saved], self.plan)
        refusals.refuse_missing_in_optimizers(trainer, pl_module, self.plan, self.frozen_norm)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the phase of this epoch, also on resume inside it.

        Raises:
            UserError: If the run has too few steps to reach the last phase.
        """
        keep_last_batch(trainer)
        forget_files_elsewhere(trainer)
        refusals.refuse_too_few_steps(trainer, cast(Plan, self.plan))
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the phase of the epoch."""
        self._apply(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gives every rank the buffers of rank 0, as DDP does before a forward pass, so that replicas end equal."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes what ends a phase."""
        plan = self.plan
        if plan is None or trainer.state.fn != "fit":
            return
        for phase in plan.phases:
            monitor = phase.plateau.monitor if phase.plateau else None
            if monitor is None:
                continue
            if monitor not in trainer.callback_metrics:
                raise unknown("metric", monitor, trainer.callback_metrics, "`unfreeze.plateau.monitor`")
            if not trainer.sanity_checking:
                score = float(trainer.callback_metrics[monitor])
                self.scores.setdefault(trainer.current_epoch, {})[monitor] = score

    def state_dict(self) -> dict[str, Any]:
        """What has decided the phases so far, and the plan, for those who look into a checkpoint."""
        plan = None if self.plan is None else _plain_plan(self.plan)
        return {"plan": plan, "scores": self.scores, "gradients": self.gradients, "starts": self.starts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up what has decided the phases so far; the plan is made of it again."""
        self.scores = {epoch: dict(scores) for epoch, scores in state_dict.get("scores", {}).items()}
        self.gradients = dict(state_dict.get("gradients", {}))
        self.starts = list(state_dict.get("starts", [0]))
        self._saved = state_dict.get("plan")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a run of any module go on with the validation that its checkpoint was written before."""
        validate_first(checkpoint, trainer)

    def _apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.starts = cast(Plan, self.plan).phase_starts(trainer.current_epoch, self.scores, self.starts)
        index = len(self.starts) - 1
        _check_ranks_agree(trainer, index)
        if cast(Plan, self.plan).undecided and index > 0:
            self._decide(trainer, pl_module)
        plan, module = cast(Plan, self.plan), cast(Any, pl_module)
        self._set_unfreeze_epochs(trainer, module, plan)
        module.set_trainable(plan.phases[index].trainable, self.frozen_norm)
        trainable = _trainable(pl_module)
        if isinstance(trainer.strategy, DDPStrategy) and trainable != self._reduced:
            _wrap_anew(trainer.strategy)
        follows = bool(self.gradients) or any(phase.plateau for phase in plan.phases)
        if index and follows and trainable != self._reduced:  # which no table could tell beforehand
            rank_zero_print(f"From epoch {trainer.current_epoch} on {', '.join(plan.phases[index].trainable)} train")
        self._reduced = trainable

    def _decide(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures gradients, and lets the stages with the largest ones train from now on."""
        self.gradients = relative_gradients(trainer, pl_module, self.auto_batches)
        self.plan = self.make_plan(pl_module, run_epochs(trainer))
        told = ", ".join(f"{stage} {value:.2g}" for stage, value in self.gradients.items())
        rank_zero_print(f"Norm of the gradient by that of the weights: {told}")

    def _set_unfreeze_epochs(self, trainer: L.Trainer, module: Any, plan: Plan) -> None:
        """Writes into each parameter group in which epoch it began to train, from which its learning rate warms up."""
        # As far as they are known; a phase that may end by a plateau is taken to end as late as it can.
        horizon = run_epochs(trainer) or trainer.current_epoch + sum(phase.num_epochs or 0 for phase in plan.phases)
        starts = plan.phase_starts(horizon, self.scores, self.starts)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        epochs = [math.inf] * len(groups)
        # By what trains rather than by the stage's name: frozen_norm can let a frozen stage's norm layers train.
        for start, phase in reversed(list(zip(starts, plan.phases, strict=False))):
            trained = module.trained(phase.trainable, self.frozen_norm)
            for i, group in enumerate(groups):
                if any(id(parameter) in trained for parameter in group["params"]):
                    epochs[i] = start
        for group, epoch in zip(groups, epochs, strict=True):
            group["unfreeze_epoch"] = epoch
        enter_epoch(trainer)


def run_epochs(trainer: L.Trainer) -> int | None:
    """The length of a run in epochs, or ``None`` where it has none."""
    endless = cast(Any, trainer).fast_dev_run or trainer.max_epochs in (None, -1)
    return None if endless else trainer.max_epochs


def _phase(given: Any) -> PhaseConfig:
    phase = PhaseConfig(**given) if isinstance(given, dict) else given
    return replace(phase, plateau=_plateau(phase.plateau))


def _plateau(given: Any) -> PlateauConfig | None:
    return PlateauConfig(**given) if isinstance(given, dict) else given


def _settled(plateau: PlateauConfig | None, modes: dict[str, Any]) -> PlateauConfig | None:
    """With the metric, and whether its least or its greatest value is best, where the user does not say.

    Raises:
        UserError: If the module does not log such a metric, or which of its values is best is not known.
    """
    if plateau is None:
        return None
    monitor = plateau.monitor or "val/loss"
    if modes and monitor not in modes:
        raise unknown("metric", monitor, modes, "`unfreeze.plateau.monitor`")
    mode = plateau.mode or modes.get(monitor) or ("min" if "loss" in monitor else None)
    if mode is None:
        raise UserError(f"`unfreeze.plateau.mode`: say whether the min or the max of {monitor} is best")
    return replace(plateau, monitor=monitor, mode=mode)


def _trainable(module: L.LightningModule) -> frozenset[str]:
    return frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def _check_ranks_agree(trainer: L.Trainer, index: int) -> None:
    if trainer.world_size > 1:
        indices = [index] * trainer.world_size
        torch.distributed.all_gather_object(indices, index)
        if len(set(indices)) > 1:
            raise RuntimeError(
                f"the processes disagree on the phase of epoch {trainer.current_epoch}: {indices}; what ends a phase "
                "must be the same on all, as with self.log(..., sync_dist=True)"
            )


def _wrap_anew(strategy: DDPStrategy) -> None:
    """Wraps the bare module once more; replicas are equal already, so nothing is sent."""
    strategy.model = strategy.lightning_module
    kwargs = strategy._ddp_kwargs
    strategy._ddp_kwargs = {**kwargs, "init_sync": False}
    strategy.configure_ddp()
    strategy._ddp_kwargs = kwargs


def _plain_plan(plan: Plan) -> list[dict[str, Any]]:
    return [{**asdict(phase), "trainable": list(phase.trainable)} for phase in plan.phases]
