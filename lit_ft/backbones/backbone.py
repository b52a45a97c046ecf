"""Backbones: ordered chains of named stages, then pooling, of which any stages can be frozen; costs of stages."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lit_ft.backbones.freezing import Staged
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import of_an_image, on_meta
from lit_ft.errors import UserError


class StageOutput:
    """The output of the first stages for a batch; passed instead of images, it lets the other stages go on from it.

    Args:
        values: The output of the last of these stages, ``(B, ...)``, or of all stages the features ``(B, D)``.
        depth: The number of these stages.
    """

    def __init__(self, values: Tensor, depth: int) -> None:
        self.values = values
        self.depth = depth

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """Shape of the values."""
        return self.values.shape

    def size(self, dim: int | None = None) -> Any:
        """Size of the values."""
        return self.values.size(dim)

    @property
    def device(self) -> torch.device:
        """Device of the values."""
        return self.values.device

    def to(self, *args: Any, **kwargs: Any) -> StageOutput:
        """Moves the values; Lightning calls it for each batch."""
        return StageOutput(self.values.to(*args, **kwargs), self.depth)


class Backbone(Staged, nn.Module):
    """A pretrained feature extractor, cut into stages: images ``(B, C, H, W)`` -> features ``(B, D)``.

    The output of a stage is the only input of the next, so a prefix can run alone. The pooling's parameters, where it
    has any (ConvNeXt's final norm), count to the last stage.

    Args:
        stages: The stages in order, shallow to deep.
        pool: From the last stage's output to the features.
        spec: The images that the backbone expects.
        channels_last: Whether it takes images whose channels lie together in memory.

    Raises:
        UserError: If the network cannot take images of the size that ``spec`` names.
    """

    _ends_in_head = False

    def __init__(
        self, stages: Mapping[str, nn.Module], pool: nn.Module, spec: InputSpec, channels_last: bool = True
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.pool = pool
        self.spec = spec
        # The layout that convolutions are fastest in, on CPUs and on GPUs.
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # Whether activations are computed again in the backward pass rather than kept.
        self.gradient_checkpointing = False
        # Whether stages have their weights only while they compute; what is gathered in inference mode cannot train.
        self.is_sharded = False
        features = of_an_image(self, spec)  # without data or arithmetic
        if features.ndim != 2:
            raise UserError(f"`model.pool`: gives features of shape {tuple(features.shape)}, not (B, D); choose avg")
        self.num_features = int(features.shape[1])

    def forward(self, images: Tensor | StageOutput) -> Tensor:
        """Normalised images ``(B, C, H, W)``, or what the first stages gave for them -> features ``(B, D)``."""
        if isinstance(images, StageOutput):
            if images.depth:
                return self._rest(images.values, images.depth)
            images = images.values  # normalised images
        depth = self._num_without_gradient(images)
        if not depth:
            return self._rest(images, 0)
        # What is compiled keeps nothing for the backward pass that it does not need, and knows no inference mode.
        saves_versions = torch.compiler.is_compiling() or self.is_sharded
        with torch.no_grad() if saves_versions else torch.inference_mode():
            values = self.prefix(images, depth)
        return self._rest(values.clone(), depth)  # a copy, as autograd saves nothing of inference mode

    def prefix(self, images: Tensor, depth: int) -> Tensor:
        """The output of the first stages.

        Args:
            images: Normalised images ``(B, C, H, W)``.
            depth: Number of stages; with all of them, the pooling follows.
        """
        for stage in list(self.stages.values())[:depth]:
            images = stage(images)
        outputs: Tensor = self.pool(images) if depth == len(self.stages) else images
        return outputs

    def activations(self, images: Tensor, differentiable: Collection[str] = ()) -> dict[str, Tensor]:
        """The output of each stage, shallow to deep, before the pooling; ``pool`` makes features of the last one.

        Args:
            images: Normalised images ``(B, C, H, W)``.
            differentiable: Stages by whose outputs gradients are taken, also where the stages up to there are frozen.
                The graph begins at the first of them; without any, there is none.

        >>> backbone = Backbone({"stem": nn.Conv2d(3, 2, 3), "body": nn.ReLU()}, nn.Flatten(), InputSpec(4, 4))
        >>> {stage: tuple(output.shape) for stage, output in backbone.activations(torch.zeros(1, 3, 4, 4)).items()}
        {'stem': (1, 2, 2, 2), 'body': (1, 2, 2, 2)}
        """
        outputs: dict[str, Tensor] = {}
        for name, stage in self.stages.items():
            with torch.set_grad_enabled(not outputs.keys().isdisjoint(differentiable)):
                images = stage(images)
            if name in differentiable and not images.requires_grad:
                images = images.detach().requires_grad_()
            outputs[name] = images
        return outputs

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep: every parameter of the backbone stands in exactly one."""
        modules = {name: [stage] for name, stage in self.stages.items()}
        modules[next(reversed(modules))].append(self.pool)
        return modules

    def _rest(self, values: Tensor, depth: int) -> Tensor:
        if depth == len(self.stages):
            return values
        for stage in list(self.stages.values())[depth:]:
            values = recomputed(stage, values) if self._is_recomputed(stage, values) else stage(values)
        features: Tensor = self.pool(values)
        return features

    def _num_without_gradient(self, images: Tensor) -> int:
        """How many of the first stages no gradient goes through, in a pass whose other stages need some."""
        if not torch.is_grad_enabled() or images.requires_grad:
            return 0
        for depth, parts in enumerate(self.stage_modules().values()):
            if any(parameter.requires_grad for part in parts for parameter in part.parameters()):
                return depth
        return len(self.stages)

    def _is_recomputed(self, stage: nn.Module, inputs: Tensor) -> bool:
        """Whether there are activations to save: those of a frozen prefix are not kept anyway."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return False
        return inputs.requires_grad or any(parameter.requires_grad for parameter in stage.parameters())


def recomputed(stage: nn.Module, inputs: Tensor) -> Tensor:
    """The output of a stage; only its inputs are kept for the backward pass (`Chen et al. 2016`_).

    Dropout repeats its masks. Whatever the stage keeps in its buffers, such as batch norm's statistics, is written
    once, and is at the second time what it was at the first, which matters to spectral norm.

    Args:
        stage: May write into its buffers, but not into its inputs.
        inputs: The output of the stage before it.

    .. _Chen et al. 2016: https://arxiv.org/abs/1604.06174
    """
    if torch.compiler.is_compiling():  # what is compiled writes into buffers at its end, and so once
        outputs: Tensor = checkpoint(stage, inputs, use_reentrant=False)
        return outputs
    before = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    calls = itertools.count()

    def run(inputs: Tensor) -> Any:
        if next(calls) == 0:
            return stage(inputs)
        # On copies: a momentum of 0 would not do, as batches would be counted, and 0 times inf is nan.
        return functional_call(stage, {name: buffer.clone() for name, buffer in before.items()}, (inputs,))

    outputs = checkpoint(run, inputs, use_reentrant=False)
    return outputs


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

    The forward pass of each stage, shallow to deep, takes its ``macs``. Going backward, a stage costs as much once more
    for the gradient of its weights, if it trains, and once more for that of its input, if any stage before it trains.

    >>> training_share([1, 1, 1], [False, False, True])
    0.5
    """

    def steps(trained: Sequence[bool]) -> int:
        return sum(mac * (1 + trained[i] + any(trained[:i])) for i, mac in enumerate(macs))

    return steps(trains) / max(1, steps([True] * len(macs)))
