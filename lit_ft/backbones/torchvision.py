"""Decides how torchvision's networks are cut into stages, and which images their weights expect."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, WeightsEnum, get_model, get_model_weights, list_models

from lit_ft.backbones.spec import InputSpec

Stages = OrderedDict[str, nn.Module]
Cut = Callable[[Any], tuple[Stages, nn.Module]]


def average() -> nn.Sequential:
    """Maps ``(B, D, h, w)`` -> their mean over all places ``(B, D)``."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class PatchEmbedding(nn.Module):
    """A vision transformer's first stage: images ``(B, 3, H, W)`` -> class and patch tokens ``(B, 1 + N, D)``."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.pos_embedding = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, images: Tensor) -> Tensor:
        """Cuts the images into patches, projects them, and adds the class token and the positions."""
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        embedded: Tensor = self.dropout(tokens + self.pos_embedding)
        return embedded


class ClassToken(nn.Module):
    """Tokens ``(B, 1 + N, D)`` -> the class token ``(B, D)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Takes the first token."""
        return tokens[:, 0]


class MeanToken(nn.Module):
    """Tokens ``(B, 1 + N, D)`` -> the mean of the patch tokens ``(B, D)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Averages all tokens but the first, which is the class token."""
        return tokens[:, 1:].mean(dim=1)


def _named(parts: list[list[nn.Module]], names: str) -> Stages:
    """One stage a part: ``stem`` for the first and ``names`` with a number for the others."""
    titles = ["stem", *(f"{names}{i}" for i in range(1, len(parts)))]
    return OrderedDict((title, nn.Sequential(*part)) for title, part in zip(titles, parts, strict=True))


def _split(features: nn.Sequential, starts: list[int], names: str) -> Stages:
    """Cuts ``features`` so that a new stage begins at each of ``starts``."""
    children = list(features)
    bounds = [0, *starts, len(children)]
    return _named([children[a:b] for a, b in pairwise(bounds)], names)


def _resnet(network: Any) -> tuple[Stages, nn.Module]:
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    layers = {f"layer{i}": getattr(network, f"layer{i}") for i in range(1, 5)}
    return OrderedDict(stem=stem, **layers), average()


def _vgg(network: Any) -> tuple[Stages, nn.Module]:
    pools = [i + 1 for i, child in enumerate(network.features) if isinstance(child, nn.MaxPool2d)]
    blocks = _split(network.features, pools[:-1], "block")
    stages = OrderedDict((f"block{i}", block) for i, block in enumerate(blocks.values(), start=1))
    return stages, nn.Sequential(network.avgpool, nn.Flatten())


def _vit(network: Any) -> tuple[Stages, nn.Module]:
    blocks = list(network.encoder.layers)
    size = len(blocks) // 4
    groups = [blocks[i * size : (i + 1) * size if i < 3 else None] for i in range(4)]
    groups[-1].append(network.encoder.ln)
    return _named([[PatchEmbedding(network)], *groups], "blocks"), ClassToken()


def _convnext(network: Any) -> tuple[Stages, nn.Module]:
    norm, flatten = network.classifier[0], network.classifier[1]
    return _split(network.features, [1, 2, 4, 6], "stage"), nn.Sequential(network.avgpool, norm, flatten)


def _features(starts: list[int] | None = None) -> Cut:
    """Networks whose ``features`` are one sequence: cut at ``starts``, or at every child."""

    def cut(network: Any) -> tuple[Stages, nn.Module]:
        where = list(range(1, len(network.features))) if starts is None else starts
        return _split(network.features, where, "stage"), average()

    return cut


# The first prefix that fits a name tells how it is cut; numbers are the children at which a stage begins: where the
# resolution halves, and the last convolution.
CUTS: dict[str, Cut] = {
    "resnet": _resnet,
    "resnext": _resnet,
    "wide_resnet": _resnet,
    "vgg": _vgg,
    "mobilenet_v2": _features([2, 4, 7, 14, 18]),
    "mobilenet_v3_large": _features([2, 4, 7, 13, 16]),
    "mobilenet_v3_small": _features([1, 2, 4, 9, 12]),
    "efficientnet": _features(),
    "convnext": _convnext,
    "vit": _vit,
    "squeezenet1_0": _features([3, 7, 12]),
    "squeezenet1_1": _features([3, 6, 9]),
}


def names() -> list[str]:
    """The torchvision networks that can be a backbone."""
    import torchvision.models

    return [name for name in list_models(module=torchvision.models) if name.startswith(tuple(CUTS))]


def tags(name: str) -> dict[str, WeightsEnum]:
    """The published weights of a network by their tag, with ``DEFAULT`` for the best of them."""
    enum = get_model_weights(name)
    return {**{member.name: member for member in enum}, "DEFAULT": enum.DEFAULT}


def input_spec(weights: WeightsEnum) -> InputSpec:
    """The images that published weights were evaluated with."""
    preset = weights.transforms()
    return InputSpec(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def build(name: str, image_size: int) -> nn.Module:
    """The network as torchvision makes it, with random weights."""
    options = {"image_size": image_size} if name.startswith("vit") else {}
    network: nn.Module = get_model(name, weights=None, **options)
    return network


def cut(name: str, network: nn.Module) -> tuple[Stages, nn.Module]:
    """The stages of a network and its own pooling; they share the network's parameters."""
    prefix = next(prefix for prefix in CUTS if name.startswith(prefix))
    return CUTS[prefix](network)
