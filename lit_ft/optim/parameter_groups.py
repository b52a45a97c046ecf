"""Parameter groups of an optimizer: one a stage and decay class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lit_ft.backbones.freezing import select_parameters


def build_param_groups(stages: Mapping[str, Sequence[nn.Module]], lr: float, lr_decay: float) -> list[dict[str, Any]]:
    """One parameter group a stage and decay class, head first; all exist from the first step.

    The head has the learning rate ``lr``, and each shallower stage that of the stage above it times ``lr_decay``.
    Parameters other than the weights of layers that multiply have a group without weight decay: biases, norms,
    scales, class tokens, position embeddings and the like, which torchvision and timm leave out as well.

    Args:
        stages: The modules of each stage, shallow to deep, with the head last.
        lr: Learning rate of the head.
        lr_decay: Factor from a stage to the next shallower one.

    Returns:
        Groups with ``params``, ``lr``, ``stage``, ``name`` and, for what must not decay, ``weight_decay`` 0.

    >>> [(g["name"], g["lr"]) for g in build_param_groups({"conv": [nn.Conv2d(1, 1, 3)], "head": [nn.Linear(2, 2)]},
    ...                                             lr=1.0, lr_decay=0.5)]
    [('head', 1.0), ('head/no_decay', 1.0), ('conv', 0.5), ('conv/no_decay', 0.5)]
    """
    groups: list[dict[str, Any]] = []
    for depth, (stage, modules) in enumerate(reversed(list(stages.items()))):
        own = {stage: modules}
        decay = select_parameters(own, {stage: "weights"})[stage]
        weights = {id(parameter) for parameter in decay}
        no_decay = [p for p in select_parameters(own, {stage: "all"})[stage] if id(p) not in weights]
        rate = lr * lr_decay**depth
        if decay:
            groups.append({"params": decay, "lr": rate, "stage": stage, "name": stage})
        if no_decay:
            name = f"{stage}/no_decay"
            groups.append({"params": no_decay, "lr": rate, "stage": stage, "name": name, "weight_decay": 0.0})
    return groups
