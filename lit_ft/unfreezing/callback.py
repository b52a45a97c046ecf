"""The callback that unfreezes stages: `GradualUnfreezing` applies the phase of each epoch, on every rank."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, cast, get_args

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy

from lit_ft.backbones.freezing import FrozenNorm, Staged, TrainedNorm
from lit_ft.compat import compression_of, keep_last_batch, rewrap_ddp, validate_first
from lit_ft.console import rank_zero_print
from lit_ft.errors import UserError, unknown
from lit_ft.model.checkpoint import forget_files_elsewhere
from lit_ft.model.module import FineTuneModule
from lit_ft.model.sharding import forget_buckets
from lit_ft.optim.schedules import enter_epoch
from lit_ft.runs import find_run
from lit_ft.unfreezing import preconditions
from lit_ft.unfreezing.gradients import relative_gradients
from lit_ft.unfreezing.plan import PhaseConfig, Plan, PlateauConfig, UnfreezingState
from lit_ft.unfreezing.solved_head import SolvedHead, is_solved_by_default, refuse_unsolvable, solve_head
from lit_ft.unfreezing.strategies import HeadFit, Strategy, make_plan


class GradualUnfreezing(Callback):
    """Trains in each epoch the stages that the plan names, and freezes all others.

    It is level-triggered: at the start of each epoch, and on resume, the phase is looked up and applied. Under DDP a
    new phase wraps the model anew, because DDP reduces only the gradients of parameters that were trainable when it
    wrapped (https://github.com/Lightning-AI/pytorch-lightning/issues/20340).

    The module must be a `FineTuneModule`, or any other LightningModule that names its stages, by `Staged`.

    Args:
        strategy: full trains everything, linear_probe the head alone, deepest the head and then also the last stages,
            as few as have 40% of the backbone's weights, gradual unfreezes one stage after the other, deepest first,
            plateau likewise, each when a metric has stopped improving, lp_ft the head and then everything, auto the
            head and then the stages with the largest gradients, phases what is listed there.
        head_epochs: Epochs in which deepest, gradual, lp_ft and auto train the head alone; in lp_ft with a plateau, at
            most.
        epochs_per_stage: Epochs from one stage to the next of gradual.
        phases: For strategy phases: a list of {train: [stage names or patterns], epochs: n, plateau: {...}}.
        plateau: For plateau, and for the first phase of lp_ft: what ends a phase; null is two epochs without a new
            best for plateau, and head_epochs alone for lp_ft.
        frozen_norm: Norm layers of frozen stages: eval keeps them fixed, stats updates their statistics, train trains
            them.
        auto_threshold: For auto: stages train whose relative gradient is at least this share of the largest one.
        auto_batches: For auto: the number of training batches in which gradients are measured.
        head_fit: trained trains the head in epochs of its own. solved finds the best linear head on the features of the
            training images before the first epoch, its penalty by cross-validation, and leaves these epochs out. null,
            the default of lit-ft, is solved where the head would be trained alone first, without a plateau, frozen_norm
            is eval, the head is a linear layer, and no mixed or erased images, smoothed labels or penalty change its
            loss.
        norm: Batch norm of stages that train: train normalises by the batch and follows it, eval keeps the statistics
            of the pretraining, which is better for small batches or few images; its weights train in both.

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
        head_fit: HeadFit | None = "trained",
        norm: TrainedNorm = "train",
    ) -> None:
        if strategy not in get_args(Strategy):
            raise unknown("strategy", strategy, get_args(Strategy), "`unfreeze.strategy`")
        if not 0.0 < auto_threshold <= 1.0:
            raise UserError(f"`unfreeze.auto_threshold`: must be above 0 and at most 1, got {auto_threshold}")
        if auto_batches < 1:
            raise UserError(f"`unfreeze.auto_batches`: must be at least 1, got {auto_batches}")
        if norm not in get_args(TrainedNorm):
            raise unknown("norm", norm, get_args(TrainedNorm), "`unfreeze.norm`")
        self.strategy = strategy
        self.head_epochs = head_epochs
        self.epochs_per_stage = epochs_per_stage
        self.phases = None if phases is None else [PhaseConfig(**p) if isinstance(p, dict) else p for p in phases]
        self.plateau = PlateauConfig(**plateau) if isinstance(plateau, dict) else plateau
        self.frozen_norm = frozen_norm
        self.auto_threshold = auto_threshold
        self.auto_batches = auto_batches
        self.head_fit = head_fit
        self.norm = norm
        self.solved: SolvedHead | None = None
        self.state: UnfreezingState | None = None
        self._fits = False
        # The names of the parameters whose gradients DDP reduces.
        self._reduced: frozenset[str] = frozenset()

    def make_plan(self, module: L.LightningModule, max_epochs: int | None, trainer: L.Trainer | None = None) -> Plan:
        """The plan for a module and a number of epochs, if the run has one, as far as the options decide it.

        Without a trainer, whose data a head could be solved on, none is solved unless that is asked for.

        Raises:
            UserError: If the module names no stages, or the plan does not fit them.
        """
        if not isinstance(module, Staged):
            raise UserError(
                f"GradualUnfreezing: {type(module).__name__} names no stages; derive it from lit_ft.Staged, too, and "
                "define its stage_modules()"
            )
        module.check_stages()
        may_solve = trainer and self.frozen_norm == "eval" and is_solved_by_default(trainer, cast(Any, module))
        return self._lay_out(module, max_epochs, self.head_fit or (None if may_solve else "trained"))

    def _lay_out(self, module: Staged, max_epochs: int | None, head_fit: HeadFit | None) -> Plan:
        options = self.epochs_per_stage, self.head_epochs, self.phases, self.plateau
        num_weights = {
            stage: sum(parameter.numel() for part in parts for parameter in part.parameters())
            for stage, parts in module.stage_modules().items()
        }
        plan = make_plan(self.strategy, list(num_weights), max_epochs, *options, head_fit, num_weights)
        return plan.resolve_plateaus(cast(Any, module).monitored() if hasattr(module, "monitored") else {})

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes the plan, and refuses one that cannot be carried out, before any training."""
        self._fits = stage == "fit"
        if not self._fits:
            return
        before, self.state = self.state, UnfreezingState(self.make_plan(pl_module, run_epochs(trainer), trainer))
        if before is not None and trainer.current_epoch > 0:  # a second fit of the same trainer continues the first
            self.state.load_plain(before.to_plain(), self.auto_threshold)
        preconditions.refuse_plan(trainer, pl_module, self.state.plan, self.frozen_norm)
        if self.head_fit == "solved":
            refuse_unsolvable(trainer, pl_module)
            preconditions.warn_of_head_epochs(self.head_epochs)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes what DDP wrapped, refuses to unfreeze parameters that no optimizer has, and solves the head."""
        self._reduced = _trainable(pl_module)
        plan = cast(UnfreezingState, self.state).plan
        preconditions.refuse_missing_in_optimizers(trainer, pl_module, plan, self.frozen_norm)
        is_plan, is_resumed = getattr(trainer, "is_plan", False), trainer.ckpt_path or trainer.global_step
        if plan.solves_head and not is_plan and not is_resumed:
            self._solve(trainer, cast(FineTuneModule, pl_module))

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the first phase, so that the check can read cached features, unless gradients must choose it."""
        plan = cast(UnfreezingState, self.state).plan
        if not (plan.undecided and plan.solves_head):
            self._apply(trainer, pl_module)

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets all stages train again until training starts, as Lightning warns of layers that do not by then."""
        module = cast(Any, pl_module)
        module.set_trainable(list(module.stage_modules()), self.frozen_norm)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the phase of this epoch, also on resume inside it, if the run has the steps to reach the last."""
        keep_last_batch(trainer)
        forget_files_elsewhere(trainer)
        preconditions.refuse_too_few_steps(trainer, cast(UnfreezingState, self.state).plan)
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Applies the phase of the epoch."""
        self._apply(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copies the buffers of rank 0 to every rank, as DDP does before a forward pass, so that replicas end equal."""
        if trainer.world_size > 1:
            for buffer in pl_module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Records the metrics that end phases."""
        if self.state is not None and trainer.state.fn == "fit":
            metrics = self.state.plan.monitored(trainer.callback_metrics)
            if metrics and not trainer.sanity_checking:
                self.state.scores.setdefault(trainer.current_epoch, {}).update(metrics)

    def state_dict(self) -> dict[str, Any]:
        """The phases that have begun, what decided them, and the plan."""
        solved = {} if self.solved is None else {"solved": asdict(self.solved)}
        return {} if self.state is None else {**self.state.to_plain(), **solved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes the phases of a checkpoint; raises `UserError` if that is of another plan."""
        # Lightning loads it also for a test after the fit, of a checkpoint that may be of an earlier phase.
        if self.state is not None and self._fits:
            self.state.load_plain(state_dict, self.auto_threshold)
            self.solved = SolvedHead(**state_dict["solved"]) if "solved" in state_dict else None
            preconditions.refuse_another_plan(state_dict.get("plan"), self.state.plan)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a run of any module go on with the validation that its checkpoint was written before."""
        validate_first(checkpoint, trainer)
        if self._fits and self.head_fit is None:  # as the run did, which was perhaps of another version
            was_solved = "solved" in checkpoint.get("callbacks", {}).get(self.state_key, {})
            plan = self._lay_out(cast(Any, pl_module), run_epochs(trainer), "solved" if was_solved else "trained")
            self.state = UnfreezingState(plan)

    def _solve(self, trainer: L.Trainer, module: FineTuneModule) -> None:
        """Solves the head, saves it as a checkpoint, and ends a run in which nothing else would train."""
        self.solved = solve_head(trainer, module)
        rank_zero_print(str(self.solved))
        for callback in cast(Any, trainer).callbacks:
            if isinstance(callback, WeightAveraging):  # whose copy has the head from before
                callback.setup(trainer, module, "fit")
        if (run := find_run(trainer)) and trainer.checkpoint_callbacks:
            trainer.save_checkpoint(run.probe, weights_only=True)
        if cast(UnfreezingState, self.state).plan.phases[-1].num_epochs == 0:
            trainer.fit_loop.max_epochs = 0
            cast(Any, trainer).num_sanity_val_steps = 0  # no validation follows that could fail

    def _apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        state, module = cast(UnfreezingState, self.state), cast(Any, pl_module)
        state.starts = state.starts_by(trainer.current_epoch)
        _check_ranks_agree(trainer, state.index)
        if state.plan.undecided and (state.index > 0 or state.plan.solves_head):
            state.decide(relative_gradients(trainer, pl_module, self.auto_batches), self.auto_threshold)
            values = ", ".join(f"{stage} {value:.2g}" for stage, value in state.gradients.items())
            rank_zero_print(f"Norm of the gradient by that of the weights: {values}")
        _set_unfreeze_epochs(trainer, module, state, self.frozen_norm)
        norm: Any = {} if self.norm == "train" else {"norm": self.norm}  # which a module of the user's may not take
        module.set_trainable(state.phase.trainable, self.frozen_norm, **norm)
        if (trainable := _trainable(pl_module)) == self._reduced:
            return
        self._reduced = trainable
        if isinstance(trainer.strategy, DDPStrategy):
            forget_buckets(compression_of(trainer.strategy)[1])
            rewrap_ddp(trainer.strategy)
        if state.index and state.is_adaptive:  # no table could tell it before the run
            rank_zero_print(f"From epoch {trainer.current_epoch} on {', '.join(state.phase.trainable)} train")


def run_epochs(trainer: L.Trainer) -> int | None:
    """The length of a run in epochs, or ``None`` where it has none."""
    endless = cast(Any, trainer).fast_dev_run or trainer.max_epochs in (None, -1)
    return None if endless else trainer.max_epochs


def _set_unfreeze_epochs(trainer: L.Trainer, module: Staged, state: UnfreezingState, frozen_norm: FrozenNorm) -> None:
    """Writes the first epoch in which any of its parameters trains into each group, whose rate warms up from there."""
    # As far as it is known: a phase that may end by a plateau is assumed to end as late as it can.
    planned = trainer.current_epoch + sum(phase.num_epochs or 0 for phase in state.plan.phases)
    phases = {
        start: {id(parameter) for parameter in module.trainable_parameters(phase.trainable, frozen_norm)}
        for start, phase in zip(state.starts_by(run_epochs(trainer) or planned), state.plan.phases, strict=False)
    }
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            own = {id(parameter) for parameter in group["params"]}
            starts = (start for start, trained in phases.items() if own & trained)
            group["unfreeze_epoch"] = min(starts, default=math.inf)
    enter_epoch(trainer)


def _check_ranks_agree(trainer: L.Trainer, index: int) -> None:
    """Raises `RuntimeError` if not all ranks are in the phase of this index."""
    if trainer.world_size > 1:
        indices = [index] * trainer.world_size
        torch.distributed.all_gather_object(indices, index)
        if len(set(indices)) > 1:
            raise RuntimeError(
                f"the processes disagree on the phase of epoch {trainer.current_epoch}: {indices}; what ends a phase "
                "must be the same on all, as with self.log(..., sync_dist=True)"
            )


def _trainable(module: L.LightningModule) -> frozenset[str]:
    return frozenset(name for name, parameter in module.named_parameters() if parameter.requires_grad)
