"""Selection of parameters: stages by kinds of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from torch import nn

from lit_ft.compat import BATCH_NORM, INSTANCE_NORM

Kind = Literal["all", "norms", "biases", "weights"]
"""Every parameter, those of norm layers, biases of any layer, or the weights of layers that multiply.

Weights are what weight decay is for: no norms, scales, class tokens or position embeddings.
"""

NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, INSTANCE_NORM)


def select_parameters(
    stages: Mapping[str, Sequence[nn.Module]], kinds: Mapping[str, Kind]
) -> dict[str, list[nn.Parameter]]:
    """The parameters of a kind for each stage, shallow to deep; each parameter once.

    Everything that trains, freezes, decays or is counted by stage is selected here.

    Args:
        stages: The modules of each stage, shallow to deep.
        kinds: The kind that is selected in a stage; nothing is selected in stages without one.

    >>> stages = {"conv": [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], "head": [nn.Linear(2, 2)]}
    >>> found = select_parameters(stages, {"head": "all", "conv": "norms"})
    >>> {stage: [tuple(parameter.shape) for parameter in selected] for stage, selected in found.items()}
    {'conv': [(2,), (2,)], 'head': [(2, 2), (2,)]}
    """
    return {name: _of_kind(parts, kinds[name]) for name, parts in stages.items() if name in kinds}


def norm_layers(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """The norm layers within some modules."""
    return [module for part in parts for module in part.modules() if isinstance(module, NORMS)]


def _of_kind(parts: Sequence[nn.Module], kind: Kind) -> list[nn.Parameter]:
    in_norms = {id(parameter) for norm in norm_layers(parts) for parameter in norm.parameters()}
    found: dict[int, nn.Parameter] = {}
    for name, parameter in _named(parts):
        # By name, as a scale (C, 1, 1) and a class token (1, 1, C) have as many axes as a weight.
        matches = {
            "all": True,
            "norms": id(parameter) in in_norms,
            "biases": name.endswith("bias"),
            "weights": "weight" in name and parameter.ndim > 1 and id(parameter) not in in_norms,
        }
        if matches[kind]:
            found.setdefault(id(parameter), parameter)
    return list(found.values())


def _named(parts: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for module in (module for part in parts for module in part.modules()):
        yield from module.named_parameters(recurse=False)
