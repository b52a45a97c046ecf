"""The training objective: a batch in, its loss and the values to log out."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_ft.model.mixing import BatchMix
from lit_ft.model.regularisation import WeightPenalty
from lit_ft.tasks.class_weight import ClassWeight, balanced_weights
from lit_ft.tasks.task import warn_unused_smoothing

Batch = tuple[Any, Tensor]
"""Images ``(B, C, H, W)``, or a `StageOutput` of cached features, and targets."""


class Objective:
    """Supervised training: erased and mixed images, weighted classes, and a penalty on the weights.

    It is no ``nn.Module``: what has state is part of the module that it trains, and is saved there.

    Args:
        mix: Erases and mixes the images of a batch.
        penalty: The penalty on the weights.
        weighting: How classes are weighted.
    """

    def __init__(self, mix: BatchMix, penalty: WeightPenalty, weighting: ClassWeight | None = None) -> None:
        self.mix = mix
        self.penalty = penalty
        self.weighting = weighting
        # No buffer: weight averaging copies the module before its setup, and would then count one more.
        self.class_weight: Tensor | None = None

    def setup(self, module: Any) -> None:
        """Prepares for a fit on the data of the module's trainer.

        Raises:
            UserError: If the data does not give the numbers that weights follow from.
        """
        warn_unused_smoothing(module.task)
        if self.weighting is not None:
            weight = balanced_weights(module.task.name, getattr(module.trainer, "datamodule", None), module.class_names)
            self.class_weight = weight.to(module.trainer.strategy.root_device)

    def augment(self, module: Any, batch: Batch) -> Batch:
        """A batch as the network gets it; unchanged in eval mode, in which gradients are compared.

        Args:
            module: The module that is trained, which normalises.
            batch: The batch from the loader.
        """
        images, targets = batch
        if not (module.training and self.mix.is_on):
            return images, targets
        mixed: Batch = self.mix(module.normalise(images), targets)
        return mixed

    def __call__(self, module: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a training step, and the scalars to log by name.

        Args:
            module: The module that is trained: callable, with ``task``, ``normalise``, ``backbone`` and ``head``.
            batch: The batch from the loader.
        """
        images, targets = self.augment(module, batch)
        loss: Tensor = module.task.loss(module(images), targets, self.class_weight)
        logs = {"train/loss": loss}
        if self.penalty.is_on:
            logs["train/penalty"] = self.penalty(module.backbone, module.head)
            loss = loss + logs["train/penalty"]
        return loss, logs
