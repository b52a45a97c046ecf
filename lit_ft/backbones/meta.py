"""Decides how a network is looked at without its data: shapes, counts and features at no cost in memory or time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_parameter_registration_hook


@contextmanager
def without_data() -> Iterator[None]:
    """Networks made in here have parameters without data, which take no memory and no time to draw."""

    def emptied(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]  # may give a parameter
    try:
        yield
    finally:
        hook.remove()


def on_meta(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a module gives for tensors without data: the shapes of its results."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    return functional_call(module, shapes, args, kwargs)
