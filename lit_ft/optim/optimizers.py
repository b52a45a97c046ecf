"""Optimizers built by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

from lit_ft.optim.class_spec import ClassSpec, resolve_class

# Options of torch's optimizers that choose an implementation of the same arithmetic, or need one of them.
_FORMS = ("fused", "foreach", "capturable", "differentiable")


def build_optimizer(spec: ClassSpec, groups: list[dict[str, Any]], lr: float, fused: bool = True) -> Optimizer:
    """The optimizer that ``spec`` names, over the groups.

    Where it has a fused form, which steps in one pass over memory, for the device of the parameters, that is taken,
    unless the options choose another form.

    Args:
        spec: A name in ``torch.optim``, a dotted path, or ``{"class_path": ..., "init_args": {...}}``.
        groups: From `build_param_groups`.
        lr: Learning rate for groups that have none of their own.
        fused: Whether a fused form may be taken.

    Raises:
        UserError: If it names no optimizer.
    """
    cls, options = resolve_class(spec, "optimizer")
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
