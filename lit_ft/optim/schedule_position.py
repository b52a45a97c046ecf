"""Position of the learning-rate schedules in a run: at an epoch's start, and on resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_ft.compat import inner_schedulers, inner_states
from lit_ft.errors import UserError
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.warmup_cosine import WarmupCosine


def enter_epoch(trainer: Any) -> None:
    """Tells the `WarmupCosine` of a run which epoch it is in, and how long that and the run are.

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
    """Lets a new scheduler go on where its run is: within a checkpoint, or behind an earlier fit of the same trainer.

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
    # Checkpoints of earlier versions do not tell the steps of an epoch.
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
