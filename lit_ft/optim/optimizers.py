"""Decides the optimizer's parameter groups, one a stage and decay class, and how their learning rates run."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_ft.backbones.selector import select_parameters
from lit_ft.errors import UserError, unknown
from lit_ft.optim.run_length import RunLength

ClassSpec = str | dict[str, Any]

# What the class that an option names must be derived from, before it is called.
_BASES: dict[str, type[Any]] = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}

# Options of torch's optimizers that choose how they do the same arithmetic, or go with just one of the ways.
_FORMS = ("fused", "foreach", "capturable", "differentiable")


def param_groups(stages: Mapping[str, Sequence[nn.Module]], lr: float, lr_decay: float) -> list[dict[str, Any]]:
    """One parameter group a stage and decay class, head first; all exist from the first step.

    The head has the learning rate ``lr``, and each shallower stage that of the stage above it times ``lr_decay``.
    What is no weight of a layer that multiplies stands in a group of its own, without weight decay: biases, norms,
    scales, class tokens, position embeddings and the like, which torchvision and timm leave out as well.

    Args:
        stages: The modules of each stage, shallow to deep, with the head last.
        lr: Learning rate of the head.
        lr_decay: Factor from a stage to the next shallower one.

    Returns:
        Groups with ``params``, ``lr``, ``stage``, ``name`` and, for what must not decay, ``weight_decay`` 0.

    >>> [(g["name"], g["lr"]) for g in param_groups({"conv": [nn.Conv2d(1, 1, 3)], "head": [nn.Linear(2, 2)]},
    ...                                             lr=1.0, lr_decay=0.5)]
    [('head', 1.0), ('head/no_decay', 1.0), ('conv', 0.5), ('conv/no_decay', 0.5)]
    """
    groups: list[dict[str, Any]] = []
    for depth, (stage, modules) in enumerate(reversed(list(stages.items()))):
        own = {stage: modules}
        decay = select_parameters(own, {stage: "weights"})[stage]
        weights = {id(parameter) for parameter in decay}
        no_decay = [p for p in select_parameters(own, {stage: "all"})[stage] if id(p) not in weights]
        rate = lr * lr_decay**depth
        if decay:
            groups.append({"params": decay, "lr": rate, "stage": stage, "name": stage})
        if no_decay:
            name = f"{stage}/no_decay"
            groups.append({"params": no_decay, "lr": rate, "stage": stage, "name": name, "weight_decay": 0.0})
    return groups


class WarmupCosine(LRScheduler):
    """Warms up linearly, then follows half a cosine down to ``final_fraction``.

    A stage that is unfrozen in mid-run warms up from its own first step, and joins the same cosine
    (`Loshchilov and Hutter 2017 <https://arxiv.org/abs/1608.03983>`_, eq. 5, without restarts).

    Its position is the progress of the run in epochs, so that a run which is resumed with another number of steps in an
    epoch, or for more epochs, goes on along the same curve. That is drawn in steps of the epoch in which the run began.

    Args:
        optimizer: Its groups may have ``unfreeze_epoch``, the epoch in which they begin to train, or infinity.
        total_steps: Length of the run in optimizer steps; filled in from the trainer.
        warmup_fraction: Length of each warm-up as a share of the run.
        final_fraction: Share of the learning rate that is left at the end.
        first_step: Step of the run at which the schedule begins; filled in where it follows on another one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: float,
        warmup_fraction: float = 0.05,
        final_fraction: float = 0.0,
        first_step: int = 0,
    ) -> None:
        if not 0.0 <= warmup_fraction < 1.0:
            raise UserError(f"`lr_scheduler.warmup_fraction`: must be at least 0 and below 1, got {warmup_fraction}")
        self.warmup_fraction = warmup_fraction
        self.final_fraction = final_fraction
        self.first_step = first_step
        self._set_length(total_steps)
        # Steps in the epoch with which the run began, in which the curve is drawn, and in the present epoch; as long as
        # no trainer has told them, an epoch is a step.
        self.curve_steps: float | None = None
        self.epoch_steps: float = 1
        # A place of the run, from which the steps of the present epoch are counted: its progress, and torch's count.
        self.mark_epoch: float = 0
        self.mark_step = 0
        super().__init__(optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the position; the length stays this run's own, so that a run can be resumed to go on for longer."""
        own = ("total_steps", "warmup_steps", "warmup_fraction", "final_fraction", "first_step")
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in own})

    def set_epoch_steps(self, epoch_steps: float) -> None:
        """Says how long an epoch is, for a part of another schedule, which counts steps alone.

        Args:
            epoch_steps: Optimizer steps in an epoch.
        """
        if self.curve_steps is None:
            self.curve_steps = self.epoch_steps = epoch_steps

    def enter(self, epoch: int, length: RunLength) -> None:
        """Settles where the run is, as it begins an epoch, or is resumed within one.

        Args:
            epoch: The epoch, counted from 0.
            length: The length of the run, with the steps of this epoch.

        Raises:
            UserError: If the run has no end, or is resumed with data whose length is not known any more.
        """
        self.set_epoch_steps(length.epoch_steps)
        curve_steps = cast(float, self.curve_steps)
        if math.isinf(length.epoch_steps) and math.isfinite(curve_steps):
            raise UserError(
                "`ckpt_path`: its run had data with a length, by which its learning rates go on; give such data"
            )
        is_marked = epoch <= self.mark_epoch < epoch + 1
        if math.isfinite(curve_steps) and not (is_marked and self.epoch_steps == length.epoch_steps):
            progress = self.position / curve_steps
            # Otherwise the epoch before had fewer or more steps than it began with.
            self.mark_epoch = progress if epoch <= progress <= epoch + 1 else epoch
            self.mark_step = self.last_epoch
            self.epoch_steps = length.epoch_steps
        total_steps = min(length.max_epochs * curve_steps, self._steps_at(length.max_steps))
        if math.isinf(total_steps):
            raise UserError(no_end(type(self).__name__, length))
        self._set_length(total_steps)
        self.refresh()

    def refresh(self) -> None:
        """Sets the learning rates of the present step anew, after ``unfreeze_epoch`` of a group has changed."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    @property
    def position(self) -> float:
        """How far the run is, in steps of the curve."""
        return self._steps_at(self.last_epoch)  # torch's name for the number of calls so far

    def _steps_at(self, step: float) -> float:
        """The steps of the curve up to a step of the run, at the pace of the present epoch."""
        if self.curve_steps is None or math.isinf(self.curve_steps) or math.isinf(step):
            return step
        return self.mark_epoch * self.curve_steps + (step - self.mark_step) * self.curve_steps / self.epoch_steps

    def factor(self, step: float, unfreeze_step: float = 0) -> float:
        """Share of a group's learning rate at a step of the curve.

        Args:
            step: The step, counted from the first one of the schedule.
            unfreeze_step: The step at which the group begins to train.
        """
        start = max(0, unfreeze_step)  # what was unfrozen before the schedule began warms up with it
        rise = min(1.0, (step - start + 1) / max(1, self.warmup_steps)) if step >= start else 0.0
        position = min(1.0, max(0, step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * position))
        return rise * (self.final_fraction + (1.0 - self.final_fraction) * cosine)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group at the current step."""
        step = self.position
        return [
            base * self.factor(step, self._curve_step(group.get("unfreeze_epoch", 0)))
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def _curve_step(self, epoch: float) -> float:
        """The step of the schedule at which an epoch begins; for data without a length that is not known."""
        curve_steps = 1 if self.curve_steps is None else self.curve_steps
        if math.isinf(curve_steps) and math.isfinite(epoch):
            return 0
        return epoch * curve_steps - self.first_step

    def _set_length(self, total_steps: float) -> None:
        self.total_steps = total_steps
        self.warmup_steps = math.inf if math.isinf(total_steps) else math.ceil(self.warmup_fraction * total_steps)


def build_optimizer(spec: ClassSpec, groups: list[dict[str, Any]], lr: float, fused: bool = True) -> Optimizer:
    """The optimizer that ``spec`` names, over the groups.

    Where it has a fused form, which steps in one pass over memory, for the device of the parameters, that is taken,
    unless the options choose another form.

    Args:
        spec: A name in ``torch.optim``, a dotted path, or ``{"class_path": ..., "init_args": {...}}``.
        groups: From `param_groups`.
        lr: Learning rate for groups that have none of their own.
        fused: Whether a fused form may be taken.

    Raises:
        UserError: If it names no optimizer.
    """
    cls, options = _resolve(spec, "optimizer")
    parameters = [parameter for group in groups for parameter in group["params"]]
    chosen = any(options.get(form) not in (None, False) for form in _FORMS) or options.get("fused") is False
    if fused and not chosen and "fused" in inspect.signature(cls).parameters:
        options["fused"] = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters) or None
    eps = inspect.signature(cls).parameters.get("eps")
    if eps is not None and "eps" not in options and isinstance(eps.default, float):
        # One that is 0 in the type of the weights (`trainer.precision` 16-true) would let 0 be divided by 0.
        types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
        if any(not torch.tensor(eps.default, dtype=dtype) for dtype in types):
            options["eps"] = max(torch.finfo(dtype).tiny for dtype in types)
    optimizer: Optimizer = cls(groups, lr=lr, **options)
    return optimizer


def settle_plateau(spec: ClassSpec, modes: Mapping[str, str], known: bool) -> tuple[ClassSpec, str]:
    """A scheduler's spec, and what it waits for: the loss if it does not say, else what its ``monitor`` names.

    A `ReduceLROnPlateau` gets the mode of that metric, whether its ``min`` or ``max`` is best, and not torch's default,
    which would take an accuracy that rises for one that gets worse.

    Args:
        spec: As for `build_optimizer`.
        modes: Which value of each metric is best.
        known: Whether there are no others.

    Raises:
        UserError: If there is no such metric.
    """
    cls, options = _resolve(spec, "lr_scheduler")
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
        spec: As for `build_optimizer`. A function among its options is named by its dotted path, and ``schedulers`` is
            a list of such specs; if one of these steps each step, all do, and their ``milestones`` are steps.
        optimizer: Its groups have the learning rates from which the schedule starts.
        length: The length of the run.

    Raises:
        UserError: If it names no scheduler, or one that must know the length of a run that has none, or that refuses
            its options.
    """
    rates = [group["lr"] for group in optimizer.param_groups]  # noted here, as each scheduler changes them when made
    by_epochs = math.isinf(length.total_steps) and math.isfinite(length.max_epochs)
    if by_epochs and _resolve(spec, "lr_scheduler")[0] is WarmupCosine:
        length = length.in_epochs()
        return _scheduler(spec, optimizer, rates, (0, length.total_steps), length)[0], "epoch"
    return _scheduler(spec, optimizer, rates, (0, length.total_steps), length)


def no_end(name: str, length: RunLength) -> str:
    """What is told of a scheduler that must know where a run ends, if that is not known."""
    if math.isinf(length.max_epochs):
        return f"`lr_scheduler`: {name} needs a run with an end; set `trainer.max_epochs`"
    return (
        f"`lr_scheduler`: {name} needs the number of steps, but data without a length does not tell that of an epoch; "
        "set `trainer.max_steps`, or take WarmupCosine"
    )


def _scheduler(
    spec: ClassSpec, optimizer: Optimizer, rates: list[float], span: tuple[int, float], length: RunLength
) -> tuple[Any, str]:
    """A scheduler for a span of the run, from its first step up to its end, and its interval."""
    first_step, end_step = span
    cls, given = _resolve(spec, "lr_scheduler")
    asked = inspect.signature(cls).parameters
    intervals = {"step" if {"total_steps", "max_lr"} & asked.keys() else "epoch"}
    filled: dict[str, Any] = {"optimizer": optimizer, "first_step": first_step}
    if "total_steps" in asked:
        if math.isinf(end_step):
            raise UserError(no_end(cls.__name__, length))
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
            options[key] = _function(options[key])
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


def _resolve(spec: ClassSpec, key: str) -> tuple[type[Any], dict[str, Any]]:
    """The class that ``spec`` names, and the arguments for it."""
    path, options = (spec, {}) if isinstance(spec, str) else (spec["class_path"], dict(spec.get("init_args") or {}))
    homes = [] if "." in path else ["torch.optim", "torch.optim.lr_scheduler", __name__]
    base = _BASES[key]
    found = [thing for thing in _imported(path, key, homes) if isinstance(thing, type)]
    fitting = [cls for cls in found if issubclass(cls, base)]
    if not fitting:
        what = f"{path!r} is no class derived from {base.__name__}" if found else f"there is no class {path!r}"
        raise UserError(f"`{key}`: {what}")
    return fitting[0], options


def _function(named: Any) -> Any:
    """The function that a dotted path names, or such a list, one for each group; anything else as it is."""
    if isinstance(named, (list, tuple)):
        return [_function(one) for one in named]
    if not isinstance(named, str):
        return named
    found = [thing for thing in _imported(named, "lr_scheduler", []) if callable(thing)]
    if not found:
        raise UserError(f"`lr_scheduler`: there is no function {named!r}")
    return found[0]


def _imported(path: str, key: str, homes: Sequence[str]) -> list[Any]:
    """What a dotted path names, or a bare name in its possible homes."""
    module, _, name = path.rpartition(".")
    try:
        return [getattr(importlib.import_module(home), name, None) for home in homes or [module or "builtins"]]
    except ImportError as error:
        raise UserError(f"`{key}`: cannot import {path!r} ({error})") from error
