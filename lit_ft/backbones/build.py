"""Building of backbones: from a name and weights to ordered stages, and pooling."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.chain import Network
from lit_ft.backbones.partition.cut import Pieces, check_same, cut, takes_channels_last
from lit_ft.backbones.sources import mnist_cnn, torchvision
from lit_ft.backbones.sources.custom import OwnNetwork
from lit_ft.backbones.stem import Stem, adapted, make_small, set_channels
from lit_ft.backbones.weights import load as weights_
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.errors import UserError, unknown

Pool = Literal["own", "avg", "flatten", "token"]

NetworkName = str | dict[str, Any]
"""A name that `backbone_names` lists, or the arguments of `OwnNetwork`."""


class NetworkSource(Protocol):
    """A collection of networks; each module of this package that holds one has these functions."""

    def tags(self, name: str) -> dict[str, Published]:
        """The published weights of a network by their tag, with ``DEFAULT`` for the best of them."""

    def input_spec(self, name: str, tag: str | None) -> InputSpec:
        """The images that published weights were evaluated with; without a tag, those of the first weights."""

    def build(self, name: str, spec: InputSpec) -> Network:
        """The network with random weights, for images of the spec's size, and its stages."""

    def licence(self, name: str, tag: str) -> str:
        """What is known of the licence of published weights, in words."""

    def fitted(self, module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec) -> Mapping[str, Tensor]:
        """Published tensors with the names and the shapes that the network has for images of the spec's size."""


def backbone_names(start: str = "") -> list[str]:
    """All names of torchvision and lit_ft, or of timm.

    Args:
        start: ``timm/`` for the names of timm.

    Raises:
        UserError: If timm is needed and not installed.
    """
    if not start.startswith("timm/"):
        return [mnist_cnn.NAME, *torchvision.names()]
    return list(_timm(start).names())


def source_of(name: NetworkName) -> NetworkSource:
    """The collection that a network is from.

    Raises:
        UserError: If there is no such network, or timm is needed and not installed.
    """
    if not isinstance(name, str):
        return OwnNetwork.of(name)
    names = backbone_names(name)
    if name in names:
        return _timm(name) if name.startswith("timm/") else mnist_cnn if name == mnist_cnn.NAME else torchvision
    network, _, tag = name.partition(".")
    if tag and network in names:
        raise UserError(f"`model.backbone`: {name} has a tag; give {network} and `model.weights` {tag}")
    if not name.startswith("timm/") and find_spec("timm") and f"timm/{network}" in backbone_names("timm/"):
        weights = f" and `model.weights` {tag}" if tag else ""
        raise UserError(f"`model.backbone`: {name} is a network of timm; give timm/{network}{weights}")
    raise UserError(f"{unknown('backbone', name, names, '`model.backbone`').args[0]}; see lit-ft models")


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("lit_ft.backbones.sources.timm")
    except ModuleNotFoundError as error:
        raise UserError(f"`model.backbone`: {name} needs {error.name}; run: pip install 'lit_ft[timm]'") from error


def input_spec(name: NetworkName, weights: str | None = "DEFAULT") -> InputSpec:
    """The input format of a backbone, without building it.

    Args:
        name: The network.
        weights: A tag, a file or ``None``; the latter two give the spec of the network's first published weights.

    Raises:
        UserError: If the name or the tag is unknown.

    >>> input_spec("resnet50", "IMAGENET1K_V1").size
    224
    """
    source = source_of(name)
    if weights is not None and not weights_.is_file_name(weights):
        tags = source.tags(str(name))
        if not tags:
            raise UserError(f"`model.weights`: {name} has no published weights; give a file, or null for random ones")
        if weights not in tags:
            raise unknown(f"weights tag of {name}", weights, tags, "`model.weights`")
    return source.input_spec(str(name), weights)


def build_backbone(
    name: NetworkName,
    weights: str | None = "DEFAULT",
    pool: Pool = "own",
    spec: InputSpec | None = None,
    stem: Stem = "own",
    partial: bool = False,
    key: str | None = None,
) -> Backbone:
    """The network without its classifier, cut into stages, with its weights.

    Args:
        name: One of `backbone_names`, ``timm/`` and a name of timm's, or what `OwnNetwork` takes.
        weights: A tag of the network's published weights (``DEFAULT`` for the best), a ``.pth``, ``.pt`` or
            ``.safetensors`` file, a lit_ft checkpoint, or ``None`` for random weights.
        pool: The network's ``own`` pooling, the ``avg`` over all places, ``flatten``, or the class ``token``.
        spec: The images, where they differ from `input_spec`; weights are fitted to their size and channels.
        stem: The network's ``own``, or ``small``: stride 1 and no pooling, for images of 28 to 64 pixels.
        partial: Whether to load the weights that fit and warn of the others, rather than refuse.
        key: Where in a file with several state dicts the weights are, such as ``teacher``.

    Raises:
        UserError: If the name, the tag or the file is wrong, or the network cannot be cut or take the images.
    """
    native, source = input_spec(name, weights), source_of(name)
    spec = spec or native
    network = source.build(str(name), spec)
    module = network.module
    convolutions = set_channels(module, replace(spec, mean=native.mean, std=native.std), spec.channels)
    backbone = _assemble(network, pool, stem, spec, is_own=isinstance(source, OwnNetwork))
    if weights is not None:
        names = _network_names(backbone, module)
        state = _fitted(source, module, _state(source, str(name), weights, names, key), spec, weights)
        for conv in convolutions:
            if conv in state and state[conv].shape[1:2] == (native.channels,):
                state[conv] = adapted(state[conv], spec.channels)
        weights_.load(module, state, list(names.values()), weights, partial)
    return backbone


@dataclass(frozen=True)
class LibraryNetwork:
    """A network as its library makes it, and what its tensors are called in a backbone.

    Args:
        module: The network, with random weights.
        names: The network's names of the backbone's tensors, by the backbone's.
        others: The network's names of the tensors that the backbone has not: those of the classifier.
    """

    module: nn.Module
    names: dict[str, str]
    others: list[str]


def build_library_network(name: str, pool: Pool, spec: InputSpec) -> LibraryNetwork:
    """The network that a backbone of that name was cut out of, for images of ``spec``.

    Raises:
        UserError: If there is no such network, or it cannot take the images.
    """
    native, source = input_spec(name, None), source_of(name)
    network = source.build(name, spec)
    set_channels(network.module, replace(spec, mean=native.mean, std=native.std), spec.channels)
    names = _network_names(_assemble(network, pool, "own", spec, is_own=False), network.module)
    known = set(names.values())
    return LibraryNetwork(network.module, names, [key for key in network.module.state_dict() if key not in known])


def _assemble(network: Network, pool: Pool, stem: Stem, spec: InputSpec, is_own: bool) -> Backbone:
    """Cuts a network into stages, and puts stem and pooling as asked for."""
    pieces = cut(network, spec)
    channels_last = True
    # Of a user's own network no test has shown that it can be cut.
    if is_own and not any(parameter.is_meta for parameter in network.module.parameters()):
        check_same(network.module, pieces, spec)
        channels_last = takes_channels_last(network.module, spec)
    if stem == "small":
        make_small(pieces.stages.get("stem"), spec)
    pooling = make_pool(pool, pieces, network)
    try:
        return Backbone(pieces.stages, pooling, spec, channels_last)
    except UserError as error:
        if stem == "own":
            raise
        reason = error.args[0].partition(": ")[2]
        raise UserError(
            f"`model.stem`: small: the stages after it do not take its output; give own ({reason})"
        ) from error


def _network_names(backbone: Backbone, network: nn.Module) -> dict[str, str]:
    """The network's names of the backbone's tensors, by the backbone's names; without the classifier's."""
    names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    own = backbone.state_dict(keep_vars=True)
    return {key: names[id(tensor)] for key, tensor in own.items() if id(tensor) in names}


def _state(
    source: NetworkSource, name: str, weights: str, names: Mapping[str, str], key: str | None
) -> Mapping[str, Tensor]:
    """Tensors by the network's own names, from a file or as published."""
    if not weights_.is_file_name(weights):
        if key is not None:
            raise UserError(f"`model.weights_key`: is for a file of weights, and {weights} is published; leave it out")
        return source.tags(name)[weights].read()
    state = weights_.read(weights, [names.keys(), names.values()], key)
    if not any(own in names for own in state):
        return state
    # A lit_ft checkpoint; its pooling may be another one, and may have had weights.
    return {names.get(own, own): value for own, value in state.items() if own in names or not own.startswith("pool.")}


def _fitted(
    source: NetworkSource, module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec, weights: str
) -> dict[str, Tensor]:
    try:
        return dict(source.fitted(module, state, spec))
    except UserError:
        raise
    except Exception as error:  # timm's and torchvision's own conversions take the tensors of their network for granted
        reason = " ".join(str(error).split())
        raise UserError(
            f"`model.weights`: {weights} is of another network: {type(module).__name__} cannot take its tensors "
            f"({type(error).__name__}: {reason})"
        ) from error


class Mean(nn.Module):
    """The mean over some axes of ``(B, h, w, D)``, or ``(B, N, D)`` with tokens ``start`` to ``stop`` -> ``(B, D)``."""

    def __init__(self, axes: tuple[int, ...], start: int = 0, stop: int | None = None) -> None:
        super().__init__()
        self.axes = axes
        self.start = start
        self.stop = stop

    def forward(self, places: Tensor) -> Tensor:
        """Averages over the axes."""
        return places[:, self.start : self.stop].mean(dim=self.axes)


class ClassToken(nn.Module):
    """Tokens ``(B, N, D)`` -> the first of them ``(B, D)``."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Takes the first token."""
        return tokens[:, 0]


def make_pool(pool: Pool, pieces: Pieces, network: Network) -> nn.Module:
    """From the last stage's output to features ``(B, D)``.

    Args:
        pool: The network's ``own``, the mean (``avg``) over all places, ``flatten``, or the class ``token``. Where its
            own leaves places, the mean over them follows, or over the tokens that are no patches, where there are such.
        pieces: The network, cut.
        network: Has the layout of its maps and tokens.

    Raises:
        UserError: If the last stage's output cannot be pooled so.
    """
    axes, own_axes = pieces.axes
    if pool == "own":
        if own_axes == 2:
            return pieces.pool
        if own_axes == 3 and network.prefix_tokens:  # the classifier takes several of these tokens, and no patches
            return nn.Sequential(pieces.pool, Mean((1,), stop=network.prefix_tokens))
        return nn.Sequential(pieces.pool, _average(own_axes, network))
    if pool == "flatten":
        return nn.Flatten()
    if pool == "token":
        if axes != 3 or not network.class_token:
            raise UserError("`model.pool`: token: the network has no class token; choose own or avg")
        return ClassToken()
    return _average(axes, network)


def _average(axes: int, network: Network) -> nn.Module:
    if axes == 3:
        return Mean((1,), network.prefix_tokens)
    if axes != 4:
        raise UserError(f"`model.pool`: avg: the last stage gives no map or tokens, but {axes} axes; choose own")
    return Mean((1, 2)) if network.channels_last else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
