"""Stems for other images than the weights were trained on: more or fewer channels, or few pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import of_an_image
from lit_ft.errors import UserError

Stem = Literal["own", "small"]


def adapted(weight: Tensor, channels: int) -> Tensor:
    """The weight of a convolution for another number of input channels: ``(O, C, h, w)`` -> ``(O, channels, h, w)``.

    For one channel the weights are summed, so that a grey image gives what it would give in all channels (but not where
    a convolution standardises its weights, as in NFNets); for more they are repeated and scaled by C / channels, so
    that the output keeps its size.

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


def set_channels(module: nn.Module, spec: InputSpec, wanted: int) -> list[str]:
    """Changes the number of channels of the convolutions that read the images, and returns the names of their weights.

    Args:
        module: The network; these convolutions are changed.
        spec: The images that it takes before.
        wanted: The number of channels to take.

    Raises:
        UserError: If the number differs, and there is no such convolution.
    """
    if wanted == spec.channels:
        return []
    convs = {
        name: conv
        for name, conv in module.named_modules()
        if isinstance(conv, nn.Conv2d) and conv.in_channels == spec.channels and conv.groups == 1
    }
    if not convs:
        raise UserError(
            f"`model.input.channels`: the network has no first convolution of {spec.channels} channels to change"
        )
    reading = _reading_images(module, list(convs.values()), spec)
    first = [name for name, conv in convs.items() if conv in reading] or [next(iter(convs))]  # or after some padding
    for name in first:
        weight = convs[name].weight
        convs[name].weight = nn.Parameter(adapted(weight.detach(), wanted), weight.requires_grad)
        convs[name].in_channels = wanted
    return [f"{name}.weight" for name in first]


def adapt_channels(backbone: Backbone, spec: InputSpec) -> None:
    """Lets a backbone take images of another number of channels, with the weights that it has."""
    set_channels(backbone, backbone.spec, spec.channels)
    backbone.spec = spec
    backbone.to(memory_format=backbone.memory_format)


def _reading_images(module: nn.Module, convs: Sequence[nn.Module], spec: InputSpec) -> list[nn.Module]:
    """Those of some convolutions that get the images themselves."""
    images = spec.meta_images()
    reading: list[nn.Module] = []

    def note(conv: nn.Module, given: tuple[Tensor]) -> None:
        if given[0] is images:
            reading.append(conv)

    hooks = [conv.register_forward_pre_hook(note) for conv in convs]
    try:
        of_an_image(module, spec, images)
    finally:
        for hook in hooks:
            hook.remove()
    return reading


def make_small(stem: nn.Module | None, spec: InputSpec) -> None:
    """Lets a stem keep the size of its images: stride 1, no pooling. Its weights stay as they are.

    With the stem for 224 pixels, the first stage of a ResNet sees 8 x 8 places of a 32 pixel image.

    Raises:
        UserError: If there is none, or it shrinks images in another way, such as by cutting them into patches.
    """
    if stem is None:
        raise UserError("`model.stem`: small: the network has no stage called stem; give own")
    for name, module in list(stem.named_modules()):
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            stem.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            sides = zip(module.kernel_size, module.stride, strict=True)
            if not any(1 < size <= stride for size, stride in sides):  # as those do that cut images into patches
                module.stride = (1, 1)
    if isinstance(stem, fx.GraphModule):
        for node in stem.graph.nodes:
            if node.target in (F.max_pool2d, torch.max_pool2d, F.avg_pool2d):
                node.replace_all_uses_with(node.args[0])
                stem.graph.erase_node(node)
        stem.recompile()
    shape = of_an_image(stem, spec).shape[1:]
    if len(shape) != 3 or 2 * shape[1] <= spec.size:  # maps (C, H, W) or (H, W, C)
        raise UserError(
            f"`model.stem`: small: the stem still makes {' x '.join(map(str, shape))} of images of {spec.size} pixels, "
            "by other means than pooling and overlapping strides; give own"
        )
