"""Networks without data: shapes and counts at no cost in memory or time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_parameter_registration_hook

from lit_ft.backbones.input_spec import InputSpec

Made = TypeVar("Made")

NOT_TAKEN = (RuntimeError, AssertionError, ValueError, TypeError, ArithmeticError, LookupError)
"""Errors of networks for images of a size or number of channels that they cannot take."""


def without_data(make: Callable[[], Made]) -> Made:
    """Calls ``make`` so that parameters have no data, which takes no memory, and no time to draw them.

    Networks that compute with their parameters as they are made keep their data.
    """

    def emptied(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]  # may give a parameter
    try:
        return make()
    except Exception as error:
        if "meta" not in str(error):  # torch raises no exception of its own where data is missing
            raise
    finally:
        hook.remove()
    return make()


@contextmanager
def in_eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Sets modules to eval mode, and restores the mode of each part of them."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def on_meta(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The output of a module, in eval mode, for tensors without data: the shapes of its results."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    with in_eval_mode(module):  # of one image, batch norm would have no statistics
        return functional_call(module, shapes, args, kwargs)


def of_an_image(module: nn.Module, spec: InputSpec, images: Tensor | None = None) -> Any:
    """The output of a network for one image without data; see `on_meta`.

    Raises:
        UserError: If the network cannot take images of ``spec``.
    """
    try:
        return on_meta(module, spec.meta_images() if images is None else images)
    except NOT_TAKEN as error:
        raise spec.refused(error) from error
