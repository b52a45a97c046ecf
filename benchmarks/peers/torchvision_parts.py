"""Decides what the contestants share that bring neither data nor networks of their own: torchvision's."""

from __future__ import annotations

from typing import Any

import torch
from job import BATCH_SIZE, MEAN, RESIZE, SCALE, SIZE, STD, Job
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder


def loaders(job: Job) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Of training and validation, as torchvision's reference scripts have them."""
    cut = [transforms.Resize(RESIZE), transforms.CenterCrop(SIZE)]
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    random = [transforms.RandomResizedCrop(SIZE, scale=SCALE), transforms.RandomHorizontalFlip()]
    images = ImageFolder(f"{job.data}/train", transforms.Compose([*(random if job.augment else cut), *normalise]))
    held_out = ImageFolder(f"{job.data}/val", transforms.Compose([*cut, *normalise]))
    workers: dict[str, Any] = {"num_workers": job.workers, "persistent_workers": job.workers > 0}
    return DataLoader(images, BATCH_SIZE, shuffle=True, **workers), DataLoader(held_out, BATCH_SIZE, **workers)


def backbone_and_features(model: str) -> tuple[nn.Module, int]:
    """A network with its weights and without its last layer, and the number of its features."""
    network = models.get_model(model, weights="DEFAULT")
    if model.startswith("squeezenet"):
        return nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten()), network.fc.in_features


@torch.inference_mode()
def accuracy(network: nn.Module, loader: DataLoader[Any]) -> float:
    """Share of the images that a network in eval mode is right about."""
    right = [(network(images).argmax(1) == targets).float() for images, targets in loader]
    return float(torch.cat(right).mean())
