"""Decides what stands between the backbone's features and the logits: a linear layer or a small MLP."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from lit_ft.errors import UserError


@dataclass
class HeadConfig:
    """The layers for the new task.

    Args:
        hidden: Sizes of the hidden layers, each followed by a ReLU; none makes a linear head.
        dropout: Probability with which an input of each linear layer is dropped in training.
    """

    hidden: list[int] = field(default_factory=list)
    dropout: float = 0.0


def build_head(num_features: int, num_outputs: int, config: HeadConfig) -> nn.Sequential:
    """The head ``(B, D) -> (B, K)``: dropout and a linear layer, once for each hidden size and once for the outputs.

    Args:
        num_features: D, the number of features that the backbone gives.
        num_outputs: K, the number of classes or regression targets.
        config: The hidden sizes and the dropout.

    Raises:
        UserError: If a size is below 1 or the dropout is not in [0, 1).

    >>> build_head(512, 10, HeadConfig(hidden=[64]))
    Sequential(
      (0): Linear(in_features=512, out_features=64, bias=True)
      (1): ReLU()
      (2): Linear(in_features=64, out_features=10, bias=True)
    )
    """
    if not 0.0 <= config.dropout < 1.0:
        raise UserError(f"--model.head.dropout: must be at least 0 and below 1, got {config.dropout}")
    if any(size < 1 for size in config.hidden):
        raise UserError(f"--model.head.hidden: sizes must be at least 1, got {config.hidden}")
    layers: list[nn.Module] = []
    for size in [*config.hidden, num_outputs]:
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        layers += [nn.Linear(num_features, size), nn.ReLU()]
        num_features = size
    return nn.Sequential(*layers[:-1])  # no ReLU on the logits
