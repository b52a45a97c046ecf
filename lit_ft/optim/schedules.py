"""Learning-rate schedules: built by name, positioned at an epoch's start, and resumed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_ft.compat import inner_schedulers, inner_states, setup_train_data
from lit_ft.errors import UserError, unknown
from lit_ft.optim.optimizers import ClassSpec, resolve_class, resolve_functions
from lit_ft.optim.run_length import RunLength
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
        spec: As for `build_scheduler`.
        optimizer: Its groups have the learning rates from which the schedule starts.
        trainer: The trainer of the fit.
        modes: Which value of each validation metric is best.
        known: Whether there are no other metrics.
        saved: The checkpoint that the fit resumes from, if any, with ``epoch_steps``, the steps in an epoch of its run.

    Raises:
        UserError: As `build_scheduler`, or if there is nothing that it could wait for, or it cannot go on.
    """
    setup_train_data(trainer)
    length = RunLength.of(trainer)
    spec, monitor = settle_plateau(spec, modes, known)
    scheduler, interval = build_scheduler(spec, optimizer, length)
    _continue(scheduler, interval, length, trainer, saved)
    plan = {"scheduler": scheduler, "interval": interval, "monitor": getattr(scheduler, "monitor", monitor)}
    if isinstance(scheduler, ReduceLROnPlateau):
        if not trainer.enable_validation:
            raise UserError("`lr_scheduler`: ReduceLROnPlateau waits for validations, and the run has none")
        plan["frequency"] = trainer.check_val_every_n_epoch or 1
    return plan


def _continue(scheduler: Any, interval: str, length: RunLength, trainer: Any, saved: Mapping[str, Any] | None) -> None:
    """Resumes a new scheduler where its run is: in a checkpoint, or after an earlier fit of the same trainer."""
    if saved is not None:
        if interval == "step" and not isinstance(scheduler, WarmupCosine):
            _refuse_other_counts(scheduler, length, saved)
    elif trainer.current_epoch and isinstance(scheduler, WarmupCosine):
        scheduler.last_epoch = trainer.global_step
        scheduler.enter(trainer.current_epoch, length.in_epochs() if interval == "epoch" else length)
    elif trainer.current_epoch:
        raise UserError(
            f"`lr_scheduler`: {type(scheduler).__name__} would begin anew in a second fit of the same trainer; resume "
            "a checkpoint of the first, with ckpt_path, or take WarmupCosine"
        )


def _refuse_other_counts(scheduler: Any, length: RunLength, saved: Mapping[str, Any]) -> None:
    state: Mapping[str, Any] = next(iter(saved.get("lr_schedulers", ())), {})
    # Checkpoints of earlier versions lack the steps of an epoch.
    then = saved.get("epoch_steps") or length.epoch_steps, _total_steps(state)
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


def step_plateaus(trainer: Any, measured: Mapping[str, Any]) -> list[Any]:
    """Steps what waits for a plateau of the metrics measured last, at the end of an epoch that validates.

    Lightning would step it after the checkpoints of the epoch's end (fit_loop.py, on_advance_end), so that a run that
    is resumed from there would lose the step, and not at all in an epoch that is resumed in the middle.

    Returns:
        The schedulers that were stepped. Those of the interval ``step`` are Lightning's to step.
    """
    stepped = []
    for config in trainer.lr_scheduler_configs:
        validates = config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0
        if config.reduce_on_plateau and config.monitor in measured and validates:
            config.scheduler.step(measured[config.monitor])
            stepped.append(config.scheduler)
    return stepped


def enter_epoch(trainer: Any) -> None:
    """Gives the `WarmupCosine` of a run its epoch, and the length of run and epoch, whose steps may have changed."""
    length = RunLength.of(trainer)
    for config in trainer.lr_scheduler_configs:
        own = length.in_epochs() if config.interval == "epoch" else length
        if isinstance(config.scheduler, WarmupCosine):
            config.scheduler.enter(trainer.current_epoch, own)
        for part in inner_schedulers(config.scheduler):
            if isinstance(part, WarmupCosine):
                part.set_epoch_steps(own.epoch_steps)


def settle_plateau(spec: ClassSpec, modes: Mapping[str, str], known: bool) -> tuple[ClassSpec, str]:
    """A scheduler's spec, and what it waits for: the loss if it does not say, else what its ``monitor`` names.

    A `ReduceLROnPlateau` gets the mode of that metric, whether its ``min`` or ``max`` is best, and not torch's default,
    which would take an accuracy that rises for one that gets worse.
    """
    cls, options = resolve_class(spec, "lr_scheduler")
    if not issubclass(cls, ReduceLROnPlateau):
        return spec, "val/loss"
    monitor = options.pop("monitor", None) or "val/loss"
    if known and monitor not in modes:
        raise unknown("metric", monitor, modes, "`lr_scheduler.monitor`")
    if monitor in modes:
        options["mode"] = modes[monitor]
    if "monitor" in inspect.signature(cls).parameters:  # as Lightning's, which the command line takes
        options["monitor"] = monitor
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": options}, monitor


def build_scheduler(spec: ClassSpec, optimizer: Optimizer, length: RunLength) -> tuple[Any, str]:
    """The learning-rate scheduler that ``spec`` names, and whether it steps each ``step`` or each ``epoch``.

    A scheduler that asks for ``total_steps`` or ``max_lr`` steps each step, and gets the length of the run and each
    group's own learning rate; `CyclicLR` rises to that from a quarter of it (`Smith 2017
    <https://arxiv.org/abs/1506.01186>`_, section 3.3), so that ``lr_decay`` holds through the cycle. All others step
    each epoch, as with LightningCLI, and so does `WarmupCosine` where a run is measured in epochs of unknown length.

    Args:
        spec: A class, by name or with its options. A function among these is named by its dotted path, and
            ``schedulers`` is a list of such specs; if one of these steps each step, all do, and their ``milestones``
            are steps.
        optimizer: Its groups have the learning rates from which the schedule starts.
        length: The length of the run.

    Raises:
        UserError: If it names no scheduler, or one that must know the length of a run that has none, or that refuses
            its options.
    """
    rates = [group["lr"] for group in optimizer.param_groups]  # noted here, as each scheduler changes them when made
    by_epochs = math.isinf(length.total_steps) and math.isfinite(length.max_epochs)
    by_epochs = by_epochs and resolve_class(spec, "lr_scheduler")[0] is WarmupCosine
    length = length.in_epochs() if by_epochs else length
    scheduler, interval = _build(spec, optimizer, rates, (0, length.total_steps), length)
    return scheduler, "epoch" if by_epochs else interval


def _build(
    spec: ClassSpec, optimizer: Optimizer, rates: list[float], span: tuple[int, float], length: RunLength
) -> tuple[Any, str]:
    """A scheduler for a span of the run, from its first step up to its end, and its interval."""
    first_step, end_step = span
    cls, given = resolve_class(spec, "lr_scheduler")
    asked = inspect.signature(cls).parameters
    intervals = {"step" if {"total_steps", "max_lr"} & asked.keys() else "epoch"}
    filled: dict[str, Any] = {"optimizer": optimizer, "first_step": first_step}
    if "total_steps" in asked:
        if math.isinf(end_step):
            raise UserError(length.format_no_end(cls.__name__))
        filled["total_steps"] = int(end_step) - first_step
    if "max_lr" in asked:
        filled |= {"max_lr": rates, "base_lr": [rate / 4 for rate in rates]}
    options = {**{key: value for key, value in filled.items() if key in asked}, **given}
    if "schedulers" in given:
        spans = _spans(len(given["schedulers"]), given.get("milestones", []), first_step, end_step)
        pairs = zip(given["schedulers"], spans, strict=True)
        parts = [_build(part, optimizer, rates, span, length) for part, span in pairs]
        options["schedulers"] = [part for part, _ in parts]
        intervals |= {interval for _, interval in parts}
    for key in options.keys() & asked.keys():
        if "Callable" in str(asked[key].annotation):
            options[key] = resolve_functions(options[key])
    try:
        made = cls(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"`lr_scheduler`: {cls.__name__}: {error}") from error
    if isinstance(made, WarmupCosine):
        made.set_epoch_steps(length.epoch_steps)
    return made, "step" if "step" in intervals else "epoch"


def _spans(parts: int, milestones: Sequence[int], first: int, end: float) -> list[tuple[int, float]]:
    """The first and the end step of each of a list's schedulers: one after the other, or all at once.

    >>> _spans(3, [4, 6], 10, 30)
    [(10, 14), (14, 16), (16, 30)]
    >>> _spans(2, [], 10, 30)
    [(10, 30), (10, 30)]
    """
    if not milestones:
        return [(first, end)] * parts
    bounds = [first, *(first + milestone for milestone in milestones)]
    # A wrong number of milestones is left for the scheduler to refuse.
    return [(bounds[min(i, len(milestones))], bounds[i + 1] if i < len(milestones) else end) for i in range(parts)]
