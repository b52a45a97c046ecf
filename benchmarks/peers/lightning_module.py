"""Decides the module that Lightning's own callback and finetuning-scheduler train: that of their documentation."""

from __future__ import annotations

import lightning as L
import torch
from job import LR
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy
from torchvision_parts import backbone_and_features


class Transfer(L.LightningModule):
    """A backbone and a head.

    Args:
        model: Torchvision's name of the network.
        classes: Number of classes.
    """

    def __init__(self, model: str, classes: int) -> None:
        super().__init__()
        self.backbone, num_features = backbone_and_features(model)
        self.head = nn.Linear(num_features, classes)
        self.accuracy = MulticlassAccuracy(classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.backbone(images))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        images, targets = batch
        loss = cross_entropy(self(images), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and accuracy."""
        images, targets = batch
        logits = self(images)
        self.accuracy(logits, targets)
        self.log("val_loss", cross_entropy(logits, targets), prog_bar=True)
        self.log("val_acc", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the head alone: a callback adds the backbone."""
        return torch.optim.AdamW(self.head.parameters(), lr=LR)
