"""Learning-rate schedules built by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lit_ft.errors import UserError, unknown
from lit_ft.optim.class_spec import ClassSpec, resolve_class, resolve_functions
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.warmup_cosine import WarmupCosine


def settle_plateau(spec: ClassSpec, modes: Mapping[str, str], known: bool) -> tuple[ClassSpec, str]:
    """A scheduler's spec, and what it waits for: the loss if it does not say, else what its ``monitor`` names.

    A `ReduceLROnPlateau` gets the mode of that metric, whether its ``min`` or ``max`` is best, and not torch's default,
    which would take an accuracy that rises for one that gets worse.

    Args:
        spec: As for `resolve_class`.
        modes: Which value of each metric is best.
        known: Whether there are no others.

    Raises:
        UserError: If there is no such metric.
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
        spec: As for `resolve_class`. A function among its options is named by its dotted path, and ``schedulers`` is
            a list of such specs; if one of these steps each step, all do, and their ``milestones`` are steps.
        optimizer: Its groups have the learning rates from which the schedule starts.
        length: The length of the run.

    Raises:
        UserError: If it names no scheduler, or one that must know the length of a run that has none, or that refuses
            its options.
    """
    rates = [group["lr"] for group in optimizer.param_groups]  # noted here, as each scheduler changes them when made
    by_epochs = math.isinf(length.total_steps) and math.isfinite(length.max_epochs)
    if by_epochs and resolve_class(spec, "lr_scheduler")[0] is WarmupCosine:
        length = length.in_epochs()
        return _scheduler(spec, optimizer, rates, (0, length.total_steps), length)[0], "epoch"
    return _scheduler(spec, optimizer, rates, (0, length.total_steps), length)


def _scheduler(
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
        parts = [_scheduler(part, optimizer, rates, span, length) for part, span in pairs]
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
