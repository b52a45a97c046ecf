"""Networks of torchvision: their stages, published weights and input formats."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.hub import HASH_REGEX
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.chain import Network
from lit_ft.backbones.partition.cut import assign
from lit_ft.backbones.weights.load import as_loaded
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.compat import state_versions
from lit_ft.errors import UserError

Patterns = Mapping[str, str]


def _children(network: Any) -> Patterns:
    """A stage for each child of ``features``."""
    return {f"stage{i}" if i else "stem": rf"features\.{i}" for i in range(len(network.features))}


def _between_pools(network: Any) -> Patterns:
    """A stage for all convolutions up to the next pooling."""
    blocks: dict[str, list[str]] = {"block1": []}
    for i, child in enumerate(network.features):
        blocks[next(reversed(blocks))].append(str(i))
        if isinstance(child, nn.MaxPool2d):
            blocks[f"block{len(blocks) + 1}"] = []
    return {title: rf"features\.({'|'.join(places)})" for title, places in blocks.items() if places}


def _quarters(network: Any) -> Patterns:
    """The embedding of patches, and the transformer's blocks in four groups."""
    count = len(network.encoder.layers)
    groups = [range(count * i // 4, count * (i + 1) // 4) for i in range(4)]
    patterns = {"stem": r"conv_proj|class_token|encoder\.pos_embedding"}
    for i, group in enumerate(groups, start=1):
        patterns[f"blocks{i}"] = rf"encoder\.layers\.encoder_layer_({'|'.join(map(str, group))})"
    patterns["blocks4"] += r"|encoder\.ln"
    return patterns


def _under(parent: str, **children: str) -> Patterns:
    """A stage for each pattern of children of a module."""
    return {title: rf"{parent}\.{pattern}" for title, pattern in children.items()}


_RESNET = {"stem": "conv1|bn1", "layer1": "layer1", "layer2": "layer2", "layer3": "layer3", "layer4": "layer4"}

# The stages of names that begin with a prefix (the first that fits), each by a pattern that the names of its parameters
# begin with: cut where the resolution halves, and before the last convolution.
STAGES: dict[str, Patterns | Callable[[Any], Patterns]] = {
    "alexnet": _under("features", conv1="0", conv2="3", conv3="6", conv4="8", conv5="10"),
    "convnext": _under("features", stem="0", stage1="1", stage2="[23]", stage3="[45]", stage4=r"[67]|classifier\.0"),
    "densenet": {
        "stem": r"features\.(conv0|norm0)",
        **{f"block{i}": rf"features\.(denseblock{i}|transition{i})" for i in (1, 2, 3)},
        "block4": r"features\.(denseblock4|norm5)",
    },
    "efficientnet": _children,
    "googlenet": {"stem": "conv[123]", **{f"inception{i}": f"inception{i}." for i in (3, 4, 5)}},
    "inception_v3": {
        "stem": r"Conv2d_[12]._3x3",
        "stem2": r"Conv2d_3b_1x1|Conv2d_4a_3x3",
        **{f"mixed{i}": f"Mixed_{i}." for i in (5, 6, 7)},
    },
    "maxvit": {"stem": "stem", **_under("blocks", block1="0", block2="1", block3="2", block4=r"3|classifier\.2")},
    "mnasnet": _under("layers", stem="[0-7]", stage1="8", stage2="9", stage3="1[01]", stage4="1[23]", stage5="1[45]"),
    "mobilenet_v2": _under(
        "features", stem="[01]", stage1="[23]", stage2="[4-6]", stage3="([7-9]|1[0-3])", stage4="1[4-7]", stage5="18"
    ),
    "mobilenet_v3_large": _under(
        "features", stem="[01]", stage1="[23]", stage2="[4-6]", stage3="([7-9]|1[0-2])", stage4="1[3-5]", stage5="16"
    ),
    "mobilenet_v3_small": _under(
        "features", stem="0", stage1="1", stage2="[23]", stage3="[4-8]", stage4="(9|1[01])", stage5="12"
    ),
    "regnet": {"stem": "stem", **{f"block{i}": rf"trunk_output\.block{i}" for i in (1, 2, 3, 4)}},
    "resnet": _RESNET,
    "resnext": _RESNET,
    "shufflenet": {"stem": "conv1", "stage2": "stage2", "stage3": "stage3", "stage4": "stage4", "conv5": "conv5"},
    "squeezenet1_0": _under("features", stem="0", stage1="[345]", stage2="([789]|10)", stage3="12"),
    "squeezenet1_1": _under("features", stem="0", stage1="[34]", stage2="[67]", stage3="(9|1[012])"),
    "swin": _under("features", stem="0", stage1="1", stage2="[23]", stage3="[45]", stage4="[67]|norm"),
    "vgg": _between_pools,
    "vit": _quarters,
    "wide_resnet": _RESNET,
}

# Left out of each: the classifier, and heads for training only.
_CLASSIFIERS = {"convnext": r"classifier\.2", "maxvit": r"classifier\.[35]"}
_CLASSIFIER = "fc|heads?|classifier|AuxLogits|aux[12]"

# The published files have names with a dot, as in norm.1, that torchvision changes where it reads them.
_OLD_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def names() -> list[str]:
    """All of torchvision's networks for classification."""
    return list(models.list_models(module=models))


def tags(name: str) -> dict[str, Published]:
    """The published weights of a network by their tag, with ``DEFAULT`` for the best of them."""
    return {tag: _published(name, weights) for tag, weights in _weights(name).items()}


def input_spec(name: str, tag: str | None) -> InputSpec:
    """The images that published weights were evaluated with; without a tag, those of the first weights."""
    known = _weights(name)
    preset = known.get(tag or "", next(iter(known.values()))).transforms()
    mean, std = tuple(preset.mean), tuple(preset.std)
    if name in ("googlenet", "inception_v3"):
        # These were trained with 0.5, and change images of another normalisation to it; ours come with it.
        mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return InputSpec(preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, mean, std)


def licence(name: str, tag: str) -> str:
    """What torchvision says of the licence of published weights."""
    if given := _weights(name)[tag].meta.get("license"):
        return f"Licence of the weights: {given}"
    return "Published by torchvision (BSD-3-Clause), which says that terms of the data (ImageNet-1K) may apply."


def build(name: str, spec: InputSpec) -> Network:
    """The network as torchvision makes it, with random weights, and its stages.

    Raises:
        UserError: If it cannot take images of this size.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit"):
        options = {"image_size": spec.size}
    elif name.startswith("maxvit"):
        options = {"input_size": (spec.size, spec.size)}
    elif name in ("googlenet", "inception_v3"):
        options = {"init_weights": True, "transform_input": False}
    try:
        module: nn.Module = models.get_model(name, weights=None, **options)
    except (RuntimeError, AssertionError, ValueError, ArithmeticError) as error:
        raise spec.refused(error) from error
    prefix = next(prefix for prefix in STAGES if name.startswith(prefix))
    patterns = STAGES[prefix]
    if callable(patterns):
        patterns = patterns(module)
    stage_of = assign(module, patterns, _CLASSIFIERS.get(prefix, _CLASSIFIER))
    is_vit = name.startswith("vit")
    return Network(module, list(patterns), stage_of, prefix_tokens=int(is_vit), class_token=is_vit)


def fitted(module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec) -> Mapping[str, Tensor]:
    """Published tensors with today's names and the shapes for images of another size: positions are interpolated.

    Raises:
        UserError: If the network had other layers when it wrote them.
    """
    versions = state_versions(state)
    if isinstance(module, models.MNASNet) and module.alpha != 1.0 and versions.get("", {}).get("version") == 1:
        raise UserError(
            "`model.weights`: the file is of version 1 of torchvision's MNASNet, which had other first layers; give "
            "one of version 2, or a published tag"
        )
    if isinstance(module, models.DenseNet):
        state = {_OLD_DENSE_LAYER.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    state = as_loaded(module, state)
    positions = "encoder.pos_embedding"
    if not isinstance(module, models.VisionTransformer) or positions not in state:
        return state
    if state[positions].shape[2:] != module.encoder.pos_embedding.shape[2:]:
        return state  # of another network
    fit: Mapping[str, Tensor] = interpolate_embeddings(spec.size, module.patch_size, OrderedDict(state))
    return fit


def _weights(name: str) -> dict[str, models.WeightsEnum]:
    enum = models.get_model_weights(name)
    return {**{member.name: member for member in enum}, "DEFAULT": enum.DEFAULT}


def _published(name: str, weights: models.WeightsEnum) -> Published:
    file = Path(weights.url).name
    checksum = HASH_REGEX.search(file)
    cache = Path(torch.hub.get_dir()) / "checkpoints" / file
    about = weights.meta.get("recipe")
    return Published(f"{name} {weights.name}", file, weights.url, checksum and checksum[1], (cache,), about=about)
