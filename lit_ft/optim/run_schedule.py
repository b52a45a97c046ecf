"""The learning-rate schedule of a run: configured, positioned at an epoch's start, and resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_ft.compat import inner_schedulers, inner_states, setup_train_data
from lit_ft.errors import UserError
from lit_ft.optim.class_spec import ClassSpec
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.schedules import build_scheduler, settle_plateau
from lit_ft.optim.warmup_cosine import WarmupCosine


def configure_schedule(
    spec: ClassSpec,
    optimizer: Optimizer,
    trainer: Any,
    modes: Mapping[str, str],
    known: bool,
    saved: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The schedule of a fit, as a module's ``configure_optimizers`` returns it.

    Args:
        spec: As for `resolve_class`.
        optimizer: Its groups have the learning rates from which the schedule starts.
        trainer: The trainer of the fit.
        modes: Which value of each validation metric is best.
        known: Whether there are no other metrics.
        saved: As for `continue_schedule`.

    Raises:
        UserError: As `settle_plateau`, `build_scheduler` and `continue_schedule`, or if it waits for no validation.
    """
    setup_train_data(trainer)
    spec, monitor = settle_plateau(spec, modes, known)
    scheduler, interval = build_scheduler(spec, optimizer, RunLength.of(trainer))
    continue_schedule(scheduler, interval, trainer, saved)
    plan = {"scheduler": scheduler, "interval": interval, "monitor": getattr(scheduler, "monitor", monitor)}
    if isinstance(scheduler, ReduceLROnPlateau):
        if not trainer.enable_validation:
            raise UserError("`lr_scheduler`: ReduceLROnPlateau waits for validations, and the run has none")
        plan["frequency"] = trainer.check_val_every_n_epoch or 1
    return plan


def step_plateaus(trainer: Any, measured: Mapping[str, Any]) -> None:
    """Steps what waits for a plateau, at the end of an epoch that validates.

    Lightning would step it after the checkpoints of the epoch's end (fit_loop.py, on_advance_end), so that a run that
    is resumed from there would lose the step, and not at all in an epoch that is resumed in the middle.

    Args:
        trainer: The trainer of a fit.
        measured: The last validation metrics.
    """
    for config in trainer.lr_scheduler_configs:
        validates = (trainer.current_epoch + 1) % config.frequency == 0
        if config.reduce_on_plateau and config.monitor in measured and validates:
            config.scheduler.step(measured[config.monitor])


def enter_epoch(trainer: Any) -> None:
    """Gives the `WarmupCosine` of a run its epoch, and the length of epoch and run.

    Args:
        trainer: The trainer of a fit; an epoch may have another number of steps than the one before.
    """
    length = RunLength.of(trainer)
    for config in trainer.lr_scheduler_configs:
        own = length.in_epochs() if config.interval == "epoch" else length
        if isinstance(config.scheduler, WarmupCosine):
            config.scheduler.enter(trainer.current_epoch, own)
        for part in inner_schedulers(config.scheduler):
            if isinstance(part, WarmupCosine):
                part.set_epoch_steps(own.epoch_steps)


def continue_schedule(scheduler: Any, interval: str, trainer: Any, saved: Mapping[str, Any] | None) -> None:
    """Resumes a new scheduler where its run is: in a checkpoint, or after an earlier fit of the same trainer.

    Args:
        scheduler: The scheduler, before the state of a checkpoint is loaded into it.
        interval: Whether it steps each ``step`` or each ``epoch``.
        trainer: The trainer of the fit.
        saved: The checkpoint that the fit resumes from, if any, with ``epoch_steps``, the steps in an epoch of its run.

    Raises:
        UserError: If it counts steps, of which an epoch or the whole run now has another number, or has no state.
    """
    length, name = RunLength.of(trainer), type(scheduler).__name__
    if saved is not None:
        state: Mapping[str, Any] = next(iter(saved.get("lr_schedulers", ())), {})
        if interval == "step" and not isinstance(scheduler, WarmupCosine):
            _refuse_other_counts(scheduler, length, saved.get("epoch_steps"), state)
    elif trainer.current_epoch and isinstance(scheduler, WarmupCosine):
        scheduler.last_epoch = trainer.global_step
        scheduler.enter(trainer.current_epoch, length.in_epochs() if interval == "epoch" else length)
    elif trainer.current_epoch:
        raise UserError(
            f"`lr_scheduler`: {name} would begin anew in a second fit of the same trainer; resume a checkpoint of the "
            "first, with ckpt_path, or take WarmupCosine"
        )


def _refuse_other_counts(
    scheduler: Any, length: RunLength, saved_steps: float | None, state: Mapping[str, Any]
) -> None:
    # Checkpoints of earlier versions lack the steps of an epoch.
    then = saved_steps or length.epoch_steps, _total_steps(state)
    now = length.epoch_steps, _total_steps(scheduler.state_dict())
    if then != now:
        raise UserError(
            f"`lr_scheduler`: {type(scheduler).__name__} counts steps: the checkpoint's run had {_format(*then)}, this "
            f"one has {_format(*now)}; resume with the same `data.batch_size`, `trainer.accumulate_grad_batches`, "
            "`trainer.max_epochs` and number of processes, or start from its weights with `model.weights`"
        )


def _format(epoch_steps: float, totals: list[float]) -> str:
    return f"{epoch_steps:g} an epoch" + "".join(f" and {steps:g} in all" for steps in totals[:1])


def _total_steps(state: Mapping[str, Any]) -> list[float]:
    """The numbers of steps that torch's schedulers are made for, by the state of one, with its parts."""
    is_own = "warmup_steps" in state  # `WarmupCosine` takes another length
    own = [state["total_steps"]] if "total_steps" in state and not is_own else []
    return [*own, *(steps for part in inner_states(state) for steps in _total_steps(part))]
