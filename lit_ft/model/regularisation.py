"""Penalties that keep weights small, or close to where they started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lit_ft.errors import UserError


@dataclass
class PenaltyConfig:
    """A penalty on the weights that train.

    Args:
        kind: ``none``, ``l2`` towards zero, or ``l2_sp``: the backbone towards its starting point, the head to zero.
        strength: Factor for the backbone (alpha).
        head_strength: Factor for the head (beta).

    Raises:
        UserError: If a factor is negative.
    """

    kind: Literal["none", "l2", "l2_sp"] = "none"
    strength: float = 0.01
    head_strength: float = 0.01

    def __post_init__(self) -> None:
        for key in ("strength", "head_strength"):
            if getattr(self, key) < 0:
                raise UserError(f"`model.penalty.{key}`: must not be negative, got {getattr(self, key)}")


class WeightPenalty(nn.Module):
    """The penalty ``strength / 2 * |w - start|^2 + head_strength / 2 * |v|^2`` over what trains.

    ``start`` is zero for ``l2`` and the pretrained weights for ``l2_sp`` (Li et al. 2018,
    `Explicit Inductive Bias for Transfer Learning <https://arxiv.org/abs/1802.01483>`_, eq. 3). The starting point is
    in the checkpoint, so that a resumed run is drawn to the same place.

    Args:
        backbone: The backbone at its starting point.
        config: The kind and the factors.
    """

    def __init__(self, backbone: nn.Module, config: PenaltyConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind == "l2_sp":
            for name, parameter in backbone.named_parameters():
                self.register_buffer(_buffer(name), parameter.detach().clone())

    @property
    def is_on(self) -> bool:
        """Whether there is a penalty at all."""
        return self.config.kind != "none"

    def forward(self, backbone: nn.Module, head: nn.Module) -> Tensor:
        """The penalty of the weights that train: a scalar."""
        terms = []
        for name, weight in backbone.named_parameters():
            if weight.requires_grad:
                start = getattr(self, _buffer(name)) if self.config.kind == "l2_sp" else 0.0
                terms.append(self.config.strength / 2 * (weight - start).square().sum())
        terms += [self.config.head_strength / 2 * w.square().sum() for w in head.parameters() if w.requires_grad]
        return torch.stack(terms).sum()


def _buffer(name: str) -> str:
    return name.replace(".", "/")  # torch allows no dots in the names of buffers
