"""Optimizers: classes named by path, and one parameter group a stage and decay class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ft.backbones.freezing import select_parameters
from lit_ft.errors import UserError, is_from_user_code

ClassSpec = str | dict[str, Any]
"""A name in ``torch.optim``, a dotted path, or ``{"class_path": ..., "init_args": {...}}``."""

# Options of torch's optimizers that choose an implementation of the same arithmetic, or need one of them.
_FORMS = ("fused", "foreach", "capturable", "differentiable")
# What tells of a group, or of its schedule, and is no option of its step.
_LABELS = ("params", "name", "stage", "unfreeze_epoch", "initial_lr")


def check_rates(lr: float, lr_decay: float, lr_backbone: float | None = None) -> None:
    """Raises `UserError` for a learning rate, or a factor from stage to stage, that is out of range."""
    for name, rate in (("lr", lr), ("lr_backbone", lr_backbone)):
        if rate is not None and rate <= 0:
            raise UserError(f"`model.{name}`: must be above 0, got {rate}")
    if not 0.0 < lr_decay <= 1.0:
        raise UserError(f"`model.lr_decay`: must be above 0 and at most 1, got {lr_decay}")


def build_param_groups(
    stages: Mapping[str, Sequence[nn.Module]], lr: float, lr_decay: float, lr_backbone: float | None = None
) -> list[dict[str, Any]]:
    """One parameter group a stage and decay class, head first; all exist from the first step.

    The head has the learning rate ``lr``, and each shallower stage that of the stage above it times ``lr_decay``.
    Parameters other than the weights of layers that multiply have a group without weight decay: biases, norms,
    scales, class tokens, position embeddings and the like, which torchvision and timm leave out as well.

    Args:
        stages: The modules of each stage, shallow to deep, with the head last.
        lr: Learning rate of the head.
        lr_decay: Factor from a stage to the next shallower one.
        lr_backbone: Learning rate of the stage next to the head, if that is not ``lr * lr_decay``.

    Returns:
        Groups with ``params``, ``lr``, ``stage``, ``name`` and, for what must not decay, ``weight_decay`` 0.

    >>> [(g["name"], g["lr"]) for g in build_param_groups({"conv": [nn.Conv2d(1, 1, 3)], "head": [nn.Linear(2, 2)]},
    ...                                             lr=1.0, lr_decay=0.5)]
    [('head', 1.0), ('head/no_decay', 1.0), ('conv', 0.5), ('conv/no_decay', 0.5)]
    """
    groups: list[dict[str, Any]] = []
    for depth, (stage, modules) in enumerate(reversed(list(stages.items()))):
        own = {stage: modules}
        decay = select_parameters(own, {stage: "weights"})[stage]
        weights = {id(parameter) for parameter in decay}
        no_decay = [p for p in select_parameters(own, {stage: "all"})[stage] if id(p) not in weights]
        rate = lr * lr_decay**depth if lr_backbone is None or not depth else lr_backbone * lr_decay ** (depth - 1)
        if decay:
            groups.append({"params": decay, "lr": rate, "stage": stage, "name": stage})
        if no_decay:
            name = f"{stage}/no_decay"
            groups.append({"params": no_decay, "lr": rate, "stage": stage, "name": name, "weight_decay": 0.0})
    return groups


def build_optimizer(spec: ClassSpec, groups: list[dict[str, Any]], lr: float, fused: bool = True) -> Optimizer:
    """The optimizer that ``spec`` names, over the groups of `build_param_groups`.

    Where it has a fused form, which steps in one pass over memory, for the device of the parameters, that is taken,
    unless ``fused`` is false or the options choose another form. Groups without a rate of their own have ``lr``.

    Raises:
        UserError: If it names no optimizer, or one that refuses its options or these groups.
    """
    cls, options = resolve_class(spec, "optimizer")
    if "lr" in options:
        raise UserError(f"`optimizer.lr`: is given as `model.lr`, the rate of the head; leave {options['lr']} out here")
    parameters = [parameter for group in groups for parameter in group["params"]]
    asked = inspect.signature(cls).parameters
    chosen = any(options.get(form) not in (None, False) for form in _FORMS) or options.get("fused") is False
    if fused and not chosen and "fused" in asked:
        options["fused"] = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters) or None
    if "eps" in asked and "eps" not in options and isinstance(asked["eps"].default, float):
        # One that is 0 in the type of the weights (`trainer.precision` 16-true) would let 0 be divided by 0.
        types = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
        if any(not torch.tensor(asked["eps"].default, dtype=dtype) for dtype in types):
            options["eps"] = max(torch.finfo(dtype).tiny for dtype in types)
    try:
        optimizer: Optimizer = cls(groups, lr=lr, **options)
    except (TypeError, ValueError) as error:
        if is_from_user_code(error):  # which keeps its traceback
            raise
        raise UserError(f"`optimizer`: {cls.__name__}: {error}") from error
    if options.get("fused"):
        step_equal_groups_together(optimizer)
    return optimizer


def step_equal_groups_together(optimizer: Optimizer) -> None:
    """Lets those groups step in one call that then have equal options, as each call takes as long as a small stage.

    Only while the weights change are they one: what computes the gradients, and all else, finds each group.
    """
    step: Callable[..., Any] = type(optimizer).step

    @wraps(step)
    def together(self: Optimizer, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
        loss = None
        if closure is not None:  # as torch begins a step
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = join_equal_groups(groups, self.state)
        try:
            step(self, **options)
        finally:
            self.param_groups = groups
        return loss

    optimizer.step = MethodType(together, optimizer)  # type: ignore[method-assign]


def join_equal_groups(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Parameter groups in which the parameters of all groups with the same options are one.

    Those that have been trained are apart from those whose first step this is, also within a group, of which
    ``frozen_norm: train`` trains the norms first: torch (2.14) takes a group of which a part has a momentum for one
    that has it as a whole.

    >>> groups = [{"params": [1], "lr": 0.1, "name": "head"}, {"params": [2], "lr": 0.1, "name": "conv2"},
    ...           {"params": [3, 4], "lr": 0.1, "name": "conv1"}, {"params": [5], "lr": 0.2}]
    >>> join_equal_groups(groups, {1: {"step": 5}, 2: {"step": 5}, 4: {"step": 5}})
    [{'lr': 0.1, 'params': [1, 2, 4]}, {'lr': 0.1, 'params': [3]}, {'lr': 0.2, 'params': [5]}]
    """
    joined: list[tuple[bool, dict[str, Any], list[Any]]] = []
    for group in groups:
        options = {key: value for key, value in group.items() if key not in _LABELS}
        for is_begun in (True, False):
            parameters = [one for one in group["params"] if (one in state) == is_begun]
            known = next((own for begun, others, own in joined if (begun, others) == (is_begun, options)), None)
            if known is not None:
                known += parameters
            elif parameters:
                joined.append((is_begun, options, parameters))
    return [{**options, "params": parameters} for _, options, parameters in joined]


def resolve_class(spec: ClassSpec, key: str) -> tuple[type[Any], dict[str, Any]]:
    """The class that ``spec`` names for the option ``optimizer`` or ``lr_scheduler``, and the arguments for it."""
    path, options = (spec, {}) if isinstance(spec, str) else (spec["class_path"], dict(spec.get("init_args") or {}))
    base = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}[key]
    homes = () if "." in path else ("torch.optim", "torch.optim.lr_scheduler", "lit_ft.optim")
    found = [thing for thing in _import(path, key, homes) if isinstance(thing, type)]
    fitting = [cls for cls in found if issubclass(cls, base)]
    if not fitting:
        what = f"{path!r} is no class derived from {base.__name__}" if found else f"there is no class {path!r}"
        raise UserError(f"`{key}`: {what}")
    return fitting[0], options


def resolve_functions(named: Any) -> Any:
    """The function at a dotted path, or one for each path of a list; anything else unchanged."""
    if isinstance(named, (list, tuple)):
        return [resolve_functions(one) for one in named]
    if not isinstance(named, str):
        return named
    (found,) = _import(named, "lr_scheduler")
    if not callable(found):
        raise UserError(f"`lr_scheduler`: there is no function {named!r}")
    return found


def _import(path: str, key: str, homes: Sequence[str] = ()) -> list[Any]:
    """The objects at a dotted path, or with a bare name in its possible homes; None where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return [getattr(importlib.import_module(home), name, None) for home in homes or (module or "builtins",)]
    except ImportError as error:
        raise UserError(f"`{key}`: cannot import {path!r} ({error})") from error
