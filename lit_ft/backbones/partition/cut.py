"""Cutting of networks where one stage's parameters end and the next one's begin, and the proof that nothing changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.chain import Chain, Network
from lit_ft.backbones.partition.meta import in_eval_mode
from lit_ft.errors import UserError


@dataclass(frozen=True)
class Pieces:
    """A network in pieces: each takes only the output of the one before it; all share the network's parameters.

    Args:
        stages: Shallow to deep; the first takes images.
        pool: From the last stage's output to what the classifier takes; dropout just before the classifier is left out.
        classifier: From there to the logits.
        axes: The number of axes of the last stage's output, and of that of ``pool``.
    """

    stages: dict[str, fx.GraphModule]
    pool: nn.Module
    classifier: nn.Module
    axes: tuple[int, int]


def assign(module: nn.Module, stages: Mapping[str, str], classifier: str | None = None) -> dict[str, str]:
    """The stage of each parameter, from a regular expression a stage, and one of the classifier's, which are left out.

    It must fit the beginning of a parameter's name, up to a dot or its end.

    Raises:
        UserError: If a parameter fits no pattern or several, or a pattern fits no parameter.

    >>> assign(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3)), {"stem": "0"}, classifier="1")
    {'0.weight': 'stem', '0.bias': 'stem'}
    """
    patterns = list(stages.items())
    if classifier is not None:
        patterns.append(("the classifier", classifier))
    found: dict[str, str] = {}
    homes: dict[int, str] = {}  # of tied parameters, which have several names
    for name, parameter in module.named_parameters(remove_duplicate=False):
        fitting = [title for title, pattern in patterns if re.match(rf"(?:{pattern})(?:\.|$)", name)]
        if len(fitting) != 1:
            homes_found = f"in {' and in '.join(fitting)}" if fitting else "in no stage"
            raise UserError(f"`model.backbone.stages`: parameter {name} is {homes_found}; it must be in exactly one")
        found[name] = fitting[0]
        if homes.setdefault(id(parameter), fitting[0]) != fitting[0]:
            raise UserError(
                f"`model.backbone.stages`: parameter {name} is shared by {homes[id(parameter)]} and {fitting[0]}; make "
                "them one stage"
            )
    for title, pattern in patterns:
        if title not in found.values():
            raise UserError(f"`model.backbone.stages`: {title}: no parameter fits {pattern!r}")
    return {name: title for name, title in found.items() if title in stages}


def cut(network: Network, spec: InputSpec) -> Pieces:
    """Cuts a network where one stage's parameters end and the next one's begin, as late as possible.

    Raises:
        UserError: If the network cannot take images of ``spec``, or cannot be cut so.
    """
    chain = Chain(network, spec)
    starts = chain.stage_starts()
    if len(starts) == 1 < len(network.stages):
        raise UserError(
            f"`model.backbone`: {type(network.module).__name__} is no chain of stages: more than one tensor goes from "
            "each of its layers to the next"
        )
    features = chain.features()
    # The last node of each piece: of each stage, of the pooling, and of the classifier.
    ends = [start - 1 for start in list(starts.values())[1:]]
    ends += [chain.pooling(list(starts)[-1], features) - 1, features, len(chain.nodes) - 1]
    *stages, pool, classifier = [chain.piece(start + 1, end) for start, end in pairwise([-1, *ends])]
    axes = chain.axes(ends[-3]), chain.axes(features)
    return Pieces(dict(zip(starts, stages, strict=True)), pool, classifier, axes)


_ELSE = "let a module within a stage do so"


def check_same(module: nn.Module, pieces: Pieces, spec: InputSpec) -> None:
    """Refuses pieces that differ from the whole network in result or gradients, for any weights.

    Constants that were computed of weights or drawn at random while the network was traced, branches on the training
    mode and contexts such as ``torch.no_grad`` are not in a graph. All weights are moved for the comparison, and
    restored.

    Raises:
        UserError: If they differ, or the network asks whether it is training where that would be lost.
    """
    chain = nn.Sequential(*pieces.stages.values(), pieces.pool, pieces.classifier)
    # Of the CPU alone, where the network is: that of all devices would start each GPU, in a process that may fork yet.
    with torch.random.fork_rng(devices=[]), _moved(module), in_eval_mode(module, chain):
        torch.default_generator.manual_seed(0)
        images = torch.randn(2, spec.channels, spec.size, spec.size)
        outcomes = zip(_outcome(module, module, images), _outcome(chain, module, images), strict=True)
        _refuse_asking(module, chain, images)
    if not all(one.shape == two.shape and torch.allclose(one, two, 1e-4, 1e-6, True) for one, two in outcomes):
        raise UserError(
            f"`model.backbone`: {type(module).__name__} gives something else once it is cut: between its stages it "
            f"computes with weights or random numbers alone, or within a context such as torch.no_grad; {_ELSE}"
        )


def takes_channels_last(module: nn.Module, spec: InputSpec) -> bool:
    """Whether a network works on images whose channels lie together in memory, which is faster for convolutions."""
    images = torch.zeros(2, spec.channels, spec.size, spec.size).contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad(), in_eval_mode(module):
            module(images)
    except RuntimeError:  # such as "view size is not compatible with input tensor's size and stride"
        return False
    return True


def _outcome(run: nn.Module, module: nn.Module, images: Tensor) -> list[Tensor]:
    """The result for some images, and its gradients by the weights; zero where there are none."""
    torch.default_generator.manual_seed(1)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    result = run(images.clone())
    if not result.requires_grad:
        return [result, *map(torch.zeros_like, weights)]
    loss = result.square().mean()
    return [result.detach(), *torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)]


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    """Moves every weight and statistic a little, so that none is what it was when the network was traced."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    kept = [tensor.detach().clone() for tensor in tensors]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for tensor in tensors:
                # Upwards where it is positive, as variances must stay.
                tensor.mul_(1.05 + 0.05 * torch.rand(tensor.shape, generator=generator).to(tensor)).add_(0.01)
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)


class _AskedError(Exception):
    """Raised where a module asks whether it is training."""


class _Mode:
    """Stands for the training mode of a module."""

    def __bool__(self) -> bool:
        raise _AskedError


def _refuse_asking(module: nn.Module, chain: nn.Module, images: Tensor) -> None:
    """Refuses a network in which a module that was traced into asks for its mode, which the caller restores."""
    nodes = (node for piece in chain.children() if isinstance(piece, fx.GraphModule) for node in piece.graph.nodes)
    whole = {str(node.target) for node in nodes if node.op == "call_module"}
    for name, part in module.named_modules():
        if not any(name == kept or name.startswith(f"{kept}.") for kept in whole):
            vars(part)["training"] = _Mode()
    try:
        with torch.no_grad():
            module(images.clone())
    except (_AskedError, TypeError) as error:  # a TypeError of what was handed the mode, such as a function for dropout
        raise UserError(
            f"`model.backbone`: {type(module).__name__} asks between its stages whether it is training, which a chain "
            f"of stages cannot; {_ELSE}, such as nn.Dropout"
        ) from error
