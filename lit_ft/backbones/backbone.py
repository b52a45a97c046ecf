"""Decides what a backbone is: an ordered chain of named stages, then pooling, of which any stages can be frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_ft.backbones.meta import of_an_image
from lit_ft.backbones.recompute import recomputed
from lit_ft.backbones.spec import InputSpec
from lit_ft.errors import UserError

FrozenNorm = Literal["eval", "stats", "train"]

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class Backbone(nn.Module):
    """A pretrained feature extractor, cut into stages: images ``(B, C, H, W)`` -> features ``(B, D)``.

    The output of a stage is the only input of the next, so a prefix can run alone. The pooling's parameters, where it
    has any (ConvNeXt's final norm), count to the last stage.

    Args:
        stages: The stages in order, shallow to deep.
        pool: From the last stage's output to the features.
        spec: The images that the backbone expects.

    Raises:
        UserError: If the network cannot take images of the size that ``spec`` names.
    """

    def __init__(self, stages: Mapping[str, nn.Module], pool: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.stages = nn.ModuleDict(stages)
        self.pool = pool
        self.spec = spec
        self._frozen: frozenset[str] = frozenset()
        self._frozen_norm: FrozenNorm = "eval"
        # Whether activations are computed again in the backward pass rather than kept.
        self.gradient_checkpointing = False
        self.num_features = self._count_features()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, C, H, W)`` -> features ``(B, D)``."""
        for stage in self.stages.values():
            images = recomputed(stage, images) if self._is_recomputed(stage, images) else stage(images)
        features: Tensor = self.pool(images)
        return features

    def _is_recomputed(self, stage: nn.Module, inputs: Tensor) -> bool:
        """Whether there are activations to save: those of a frozen prefix are not kept anyway."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return False
        return inputs.requires_grad or any(parameter.requires_grad for parameter in stage.parameters())

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep: every parameter of the backbone stands in exactly one."""
        modules = {name: [stage] for name, stage in self.stages.items()}
        modules[next(reversed(modules))].append(self.pool)
        return modules

    def set_trainable(self, names: Collection[str], frozen_norm: FrozenNorm = "eval") -> None:
        """Lets just the stages ``names`` train; setting the same again changes nothing.

        Args:
            names: The stages that train. All others have no gradient and stay in eval mode, whoever calls `train`.
            frozen_norm: What norm layers of frozen stages do: ``eval`` nothing, ``stats`` follow the running
                statistics of the batches, ``train`` train on.
        """
        modules = self.stage_modules()
        self._frozen = frozenset(modules) - frozenset(names)
        self._frozen_norm = frozen_norm
        for name, parts in modules.items():
            for part in parts:
                part.requires_grad_(name not in self._frozen)
        if frozen_norm == "train":
            for norm in self._frozen_norms():
                norm.requires_grad_(True)
        for parameter in self.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # else the optimizer would step once more with the last gradient
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Sets training mode for all but the frozen stages, whose dropout and batch norm must not act."""
        super().train(mode)
        if mode:
            modules = self.stage_modules()
            for name in self._frozen:
                for part in modules[name]:
                    part.eval()
            if self._frozen_norm != "eval":
                for norm in self._frozen_norms():
                    norm.train()
        return self

    def _frozen_norms(self) -> Iterator[nn.Module]:
        modules = self.stage_modules()
        for name in self._frozen:
            for part in modules[name]:
                yield from (module for module in part.modules() if isinstance(module, NORMS))

    def _count_features(self) -> int:
        """D, found by a pass without data or arithmetic."""
        features = of_an_image(self, self.spec)
        if features.ndim != 2:
            raise UserError(f"--model.pool: gives features of shape {tuple(features.shape)}, not (B, D); choose avg")
        return int(features.shape[1])
