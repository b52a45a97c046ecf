"""The training objective: a batch in, its loss and the values to log out; and the penalty on the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_ft.backbones.backbone import StageOutput
from lit_ft.errors import UserError
from lit_ft.model.monitoring import TrainScore
from lit_ft.model.preprocessing import BatchMix
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.tasks.classes import balanced_weights
from lit_ft.tasks.task import ClassWeight

Batch = tuple[Any, Tensor]
"""Images ``(B, C, H, W)``, or a `StageOutput` of cached features, and targets."""


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
    """

    def __init__(self, backbone: nn.Module, config: PenaltyConfig) -> None:
        super().__init__()
        self.config = config
        if config.kind == "l2_sp":
            for name, parameter in backbone.named_parameters():
                self.register_buffer(self._buffer(name), parameter.detach().clone())

    @property
    def is_on(self) -> bool:
        """Whether there is a penalty at all."""
        return self.config.kind != "none"

    def forward(self, backbone: nn.Module, head: nn.Module) -> Tensor:
        """The penalty of the weights that train: a scalar."""
        terms = []
        for name, weight in backbone.named_parameters():
            if weight.requires_grad:
                start = getattr(self, self._buffer(name)) if self.config.kind == "l2_sp" else 0.0
                terms.append(self.config.strength / 2 * (weight - start).square().sum())
        terms += [self.config.head_strength / 2 * w.square().sum() for w in head.parameters() if w.requires_grad]
        return torch.stack(terms).sum()

    @staticmethod
    def _buffer(name: str) -> str:
        return name.replace(".", "/")  # torch allows no dots in the names of buffers


class Objective:
    """Supervised training: erased and mixed images, classes weighted if so named, and a penalty on the weights.

    It is no ``nn.Module``: what has state is part of the module that it trains, and is saved there.
    """

    def __init__(self, mix: BatchMix, penalty: WeightPenalty, weighting: ClassWeight | None = None) -> None:
        self.mix = mix
        self.penalty = penalty
        self.weighting = weighting
        # No buffer: weight averaging copies the module before its setup, and would then count one more.
        self.class_weight: Tensor | None = None
        self.score: TrainScore | None = None
        """The main metric of an epoch; None outside of a fit, and where images are mixed, which have no one class."""
        self.last_penalty: Tensor | None = None
        """What the loss of the last step has beside ``train/loss``; None without a penalty."""

    def setup(self, module: Any) -> None:
        """Takes the weights of the classes, for a fit, from the data of the module's trainer."""
        task = module.task
        self.score = None if self.mix.is_on else TrainScore(task, module.trainer.strategy.root_device)
        if task.label_smoothing and task.name != "multiclass":
            reason = f"as it is for `model.task` multiclass, not {task.name}"
            rank_zero_warn(f"`model.label_smoothing`: {task.label_smoothing} is left out, {reason}")
        if self.weighting is not None:
            weight = balanced_weights(task.name, getattr(module.trainer, "datamodule", None), module.class_names)
            self.class_weight = weight.to(module.trainer.strategy.root_device)

    def augment(self, module: Any, batch: Batch) -> Batch:
        """A batch as the network gets it; unchanged in eval mode, in which gradients are compared."""
        images, targets = batch
        if not (module.training and self.mix.is_on):
            return images, targets
        mixed, targets = self.mix(module.normalise(images), targets)
        # Floats are normalised again where they could be raw.
        return StageOutput(mixed, 0) if module.normalise.is_raw else mixed, targets

    def __call__(self, module: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a training step, and the scalars to log by name.

        The module is callable, and has a ``task``, and ``normalise``, ``backbone`` and ``head``.
        """
        images, targets = self.augment(module, batch)
        logits = module(images)
        loss: Tensor = module.task.loss(logits, targets, self.class_weight)
        if self.score is not None and module.training:
            self.score.add(logits, targets)
        logs = {"train/loss": loss}
        if self.penalty.is_on:
            logs["train/penalty"] = self.penalty(module.backbone, module.head)
            self.last_penalty = logs["train/penalty"].detach()
            loss = loss + logs["train/penalty"]
        return loss, logs
