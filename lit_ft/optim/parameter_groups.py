"""Parameter groups of an optimizer: one a stage and decay class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def build_param_groups(
    stages: Mapping[str, Sequence[nn.Module]], lr: float, lr_decay: float, norms: tuple[type[nn.Module], ...]
) -> list[dict[str, Any]]:
    """One parameter group a stage and decay class, head first; all exist from the first step.

    The head has the learning rate ``lr``, and each shallower stage that of the stage above it times ``lr_decay``.
    Parameters other than the weights of layers that multiply have a group without weight decay: biases, norms,
    scales, class tokens, position embeddings and the like, which torchvision and timm leave out as well.

    Args:
        stages: The modules of each stage, shallow to deep, with the head last.
        lr: Learning rate of the head.
        lr_decay: Factor from a stage to the next shallower one.
        norms: The classes of norm layers.

    Returns:
        Groups with ``params``, ``lr``, ``stage``, ``name`` and, for what must not decay, ``weight_decay`` 0.

    >>> [(g["name"], g["lr"]) for g in build_param_groups({"conv": [nn.Conv2d(1, 1, 3)], "head": [nn.Linear(2, 2)]},
    ...                                             lr=1.0, lr_decay=0.5, norms=())]
    [('head', 1.0), ('head/no_decay', 1.0), ('conv', 0.5), ('conv/no_decay', 0.5)]
    """
    groups: list[dict[str, Any]] = []
    for depth, (stage, modules) in enumerate(reversed(list(stages.items()))):
        decay: list[nn.Parameter] = []
        no_decay: list[nn.Parameter] = []
        for part in (part for module in modules for part in module.modules()):
            for name, parameter in part.named_parameters(recurse=False):
                # By name, as a scale (C, 1, 1) and a class token (1, 1, C) have as many axes as a weight.
                decays = "weight" in name and parameter.ndim > 1 and not isinstance(part, norms)
                (decay if decays else no_decay).append(parameter)
        rate = lr * lr_decay**depth
        if decay:
            groups.append({"params": decay, "lr": rate, "stage": stage, "name": stage})
        if no_decay:
            name = f"{stage}/no_decay"
            groups.append({"params": no_decay, "lr": rate, "stage": stage, "name": name, "weight_decay": 0.0})
    return groups
