"""Decides how a network takes other images than its weights were trained on: more or fewer channels, or few pixels."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from lit_ft.errors import UserError

Stem = Literal["own", "small"]


def adapted(weight: Tensor, channels: int) -> Tensor:
    """The weight of a convolution for another number of input channels: ``(O, C, h, w)`` -> ``(O, channels, h, w)``.

    For one channel the weights are summed, so that a grey image gives what it would give in all channels; for more they
    are repeated and scaled by C / channels, so that the output keeps its size.

    >>> import torch
    >>> adapted(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1), 4).flatten().tolist()
    [0.75, 1.5, 2.25, 0.75]
    """
    given = weight.shape[1]
    if channels == given:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight.repeat(1, math.ceil(channels / given), 1, 1)[:, :channels] * (given / channels)


def set_channels(module: nn.Module, given: int, wanted: int) -> str | None:
    """Makes the first convolution take another number of channels.

    Args:
        module: The network; its first convolution is changed.
        given: The number of channels that it takes.
        wanted: The number that it shall take.

    Returns:
        The name of the convolution's weight, where there is such a convolution.

    Raises:
        UserError: If there is none, and the numbers differ.
    """
    for name, conv in module.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels == given and conv.groups == 1:
            if wanted != given:
                conv.weight = nn.Parameter(adapted(conv.weight.detach(), wanted))
                conv.in_channels = wanted
            return f"{name}.weight"
    if wanted != given:
        raise UserError(f"--model.input.channels: the network has no first convolution of {given} channels to change")
    return None


def make_small(stem: nn.Module | None) -> None:
    """Lets a stem keep the size of its images: stride 1, no pooling. Its weights stay as they are.

    With the stem for 224 pixels, the first stage of a ResNet sees 8 x 8 places of a 32 pixel image.

    Args:
        stem: The first stage.

    Raises:
        UserError: If it does not shrink images by strides that can be left out.
    """
    changed = False
    for name, module in list(stem.named_modules()) if stem is not None else []:
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and module.stride < module.kernel_size:
            module.stride = (1, 1)
            changed = True
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            assert stem is not None
            stem.set_submodule(name, nn.Identity())
            changed = True
    if not changed:
        raise UserError("--model.stem: small: the network has no stem with strides or pooling to leave out; give own")
