"""Cutting of networks: where the parameters of one stage end and those of the next begin."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.chain import Chain
from lit_ft.errors import UserError

Stages = OrderedDict[str, nn.Module]


@dataclass(frozen=True)
class Network:
    """A network that is to be cut.

    Args:
        module: Images ``(B, C, H, W)`` -> logits, or features where it has no classifier.
        stages: The names of the stages, shallow to deep.
        stage_of: The stage of each parameter, by the parameter's name; what is not in it is the classifier's.
        wrapped: Functions that are not traced into.
        strict: Whether each stage must be found; else those that cannot be cut apart become one.
        prefix_tokens: Number of tokens before those of the patches, for transformers.
        class_token: Whether the first of these is a class token.
        channels_last: Whether the last stage gives ``(B, h, w, D)``.
    """

    module: nn.Module
    stages: list[str]
    stage_of: Mapping[str, str]
    wrapped: tuple[Callable[..., Any], ...] = ()
    strict: bool = True
    prefix_tokens: int = 0
    class_token: bool = False
    channels_last: bool = False


@dataclass(frozen=True)
class Pieces:
    """A network in pieces: each takes only the output of the one before it; all share the network's parameters.

    Args:
        stages: Shallow to deep; the first takes images.
        pool: From the last stage's output to what the classifier takes; dropout just before the classifier is left out.
        classifier: From there to the logits.
        axes: The number of axes of the last stage's output, and of that of ``pool``.
    """

    stages: Stages
    pool: nn.Module
    classifier: nn.Module
    axes: tuple[int, int]


def assign(module: nn.Module, stages: Mapping[str, str], classifier: str | None = None) -> dict[str, str]:
    """The stage of each parameter, from a pattern a stage.

    Args:
        module: The network.
        stages: A regular expression for each stage; it must fit the beginning of a parameter's name, up to a dot or
            its end.
        classifier: Likewise, for the parameters that are left out.

    Raises:
        UserError: If a parameter fits no pattern or several, or a pattern fits no parameter.

    >>> assign(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3)), {"stem": "0"}, classifier="1")
    {'0.weight': 'stem', '0.bias': 'stem'}
    """
    patterns = [*stages.items(), *([("the classifier", classifier)] if classifier is not None else [])]
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

    Args:
        network: The network and the stages of its parameters.
        spec: The images that it takes.

    Raises:
        UserError: If the network cannot take the images, or cannot be cut so.
    """
    module = network.module
    chain = Chain(module, network.stage_of, spec, network.wrapped)
    starts = chain.stage_starts(network.stages, network.strict)
    if len(starts) == 1 < len(network.stages):
        raise UserError(
            f"`model.backbone`: {type(module).__name__} is no chain of stages: more than one tensor goes from each of "
            "its layers to the next"
        )
    features = chain.features()
    # The last node of each piece: of each stage, of the pooling, and of the classifier.
    ends = [start - 1 for start in list(starts.values())[1:]]
    ends += [chain.pooling(list(starts)[-1], features) - 1, features, len(chain.nodes) - 1]
    pieces = [chain.piece(start + 1, end).train(module.training) for start, end in pairwise([-1, *ends])]
    axes = chain.axes(ends[-3]), chain.axes(features)
    return Pieces(OrderedDict(zip(starts, pieces, strict=False)), pieces[-2], pieces[-1], axes)
