"""Decides which backbone a name means: `build_backbone` turns a name and weights into ordered stages."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from lit_ft.backbones import mnist_cnn, torchvision
from lit_ft.backbones import weights as weights_
from lit_ft.backbones.backbone import Backbone, FrozenNorm
from lit_ft.backbones.spec import InputConfig, InputSpec
from lit_ft.errors import unknown

__all__ = [
    "Backbone",
    "FrozenNorm",
    "InputConfig",
    "InputSpec",
    "Pool",
    "backbone_names",
    "build_backbone",
    "input_spec",
]

Pool = Literal["own", "avg", "flatten"]

# The names under which lit_ft's own checkpoints and files hold a backbone.
_PREFIX = "backbone."
_OWN = ("stages.", "pool.")


def backbone_names() -> list[str]:
    """All names that `build_backbone` knows."""
    return ["mnist_cnn", *torchvision.names()]


def input_spec(name: str, weights: str | None = "DEFAULT") -> InputSpec:
    """The images that a backbone expects, without building it.

    Args:
        name: The network's name.
        weights: A tag, a file or ``None``; for the latter two it is the spec of the network's first published weights.

    Raises:
        UserError: If the name or the tag is unknown.

    >>> input_spec("resnet50", "IMAGENET1K_V1").size
    224
    """
    _check(name, weights)
    if name == "mnist_cnn":
        return mnist_cnn.SPEC
    tags = torchvision.tags(name)
    return torchvision.input_spec(tags.get(weights or "", next(iter(tags.values()))))


def build_backbone(
    name: str, weights: str | None = "DEFAULT", pool: Pool = "own", spec: InputSpec | None = None
) -> Backbone:
    """The named network without its classifier, cut into stages, with its weights.

    Args:
        name: One of `backbone_names`.
        weights: A tag of the network's published weights (``DEFAULT`` for the best), a ``.pth``, ``.pt`` or
            ``.safetensors`` file, a lit_ft checkpoint, or ``None`` for random weights.
        pool: From the last stage to the features: the network's ``own``, the ``avg`` over all places, or ``flatten``.
        spec: The images that will come, where they differ from `input_spec`.

    Raises:
        UserError: If the name, the tag or the file is wrong.
    """
    spec = spec or input_spec(name, weights)
    _check(name, weights)
    network: nn.Module = nn.Module()
    own_pool: nn.Module = nn.Sequential()
    if name == "mnist_cnn":
        stages = mnist_cnn.stages(spec.size)
    else:
        network = torchvision.build(name, spec.size)
        stages, own_pool = torchvision.cut(name, network)
    backbone = Backbone(stages, _pool(pool, own_pool), spec)
    if weights is not None:
        _load(name, weights, backbone, network)
    return backbone


def _check(name: str, weights: str | None) -> None:
    if name not in backbone_names():
        raise unknown("backbone", name, backbone_names(), "--model.backbone")
    tags = ["MNIST", "DEFAULT"] if name == "mnist_cnn" else list(torchvision.tags(name))
    if weights is not None and weights not in tags and not weights_.is_file_name(weights):
        raise unknown(f"weights tag of {name}", weights, tags, "--model.weights")


def _pool(pool: Pool, own: nn.Module) -> nn.Module:
    if pool == "own":
        return own
    if pool == "flatten":
        return nn.Flatten()
    if isinstance(own, torchvision.ClassToken):
        return torchvision.MeanToken()
    return torchvision.average()


def _load(name: str, weights: str, backbone: Backbone, network: nn.Module) -> None:
    """Fills the backbone, from a file with lit_ft's own names or with those of the network as it was published."""
    state: dict[str, Tensor]
    if weights_.is_file_name(weights):
        state = weights_.read(weights)
    elif name == "mnist_cnn":
        state = weights_.read(mnist_cnn.TAGS["MNIST"])
    else:
        state = weights_.download(torchvision.tags(name)[weights])
    if any(key.startswith(_PREFIX) for key in state):
        state = OrderedDict((k.removeprefix(_PREFIX), v) for k, v in state.items() if k.startswith(_PREFIX))
    if any(key.startswith(_OWN) for key in state) or not list(network.children()):
        weights_.load(backbone, state, list(backbone.state_dict()), weights)
        return
    # The backbone shares its tensors with the network, so whatever of the network it does not hold is the classifier.
    kept = {id(tensor) for tensor in backbone.state_dict(keep_vars=True).values()}
    needed = [key for key, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in kept]
    weights_.load(network, state, needed, weights)
