"""Costs of stages: parameters and arithmetic, counted without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.partition.meta import on_meta


@dataclass(frozen=True)
class StageCost:
    """The cost of a stage; the pooling counts to the last stage.

    Args:
        name: The stage.
        parameters: Their number.
        macs: Multiplications with an addition, for one image.
        shape: The output for one image, of the last stage before the pooling.
    """

    name: str
    parameters: int
    macs: int
    shape: tuple[int, ...]


def stage_costs(backbone: Backbone) -> list[StageCost]:
    """The cost of each stage of a backbone, shallow to deep."""
    # In the type that the weights have in a run with `trainer.precision` bf16-true and the like.
    dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), None)
    places, costs = backbone.spec.meta_images().to(dtype), []
    for name, (stage, *rest) in backbone.stage_modules().items():
        with FlopCounterMode(display=False) as counter:
            places = features = on_meta(stage, places)
            for module in rest:
                features = on_meta(module, features)
        parameters = sum(p.numel() for p in nn.ModuleList([stage, *rest]).parameters())
        costs.append(StageCost(name, parameters, counter.get_total_flops() // 2, tuple(places.shape[1:])))
    return costs


def total(costs: Sequence[StageCost]) -> StageCost:
    """The cost of all stages together; it has no shape."""
    return StageCost("all", sum(cost.parameters for cost in costs), sum(cost.macs for cost in costs), ())


def training_share(macs: Sequence[int], trains: Sequence[bool]) -> float:
    """The arithmetic of a training step, as a share of that in which everything trains.

    The forward pass runs through all stages. Going backward, a stage costs as much once more for the gradient of its
    weights, if it trains, and once more for that of its input, if any stage before it trains.

    Args:
        macs: Of the forward pass of each stage, shallow to deep.
        trains: Whether each of them trains.

    >>> training_share([1, 1, 1], [False, False, True])
    0.5
    """

    def steps(trained: Sequence[bool]) -> int:
        return sum(mac * (1 + trained[i] + any(trained[:i])) for i, mac in enumerate(macs))

    return steps(trains) / max(1, steps([True] * len(macs)))
