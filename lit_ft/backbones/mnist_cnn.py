"""Decides the small network of the MNIST recipe, which comes with weights inside the package."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import nn

from lit_ft.backbones.spec import InputSpec

SPEC = InputSpec(size=28, resize=28, interpolation="bilinear", mean=(0.1307,), std=(0.3081,))

TAGS = {"MNIST": Path(__file__).parent / "mnist_cnn.safetensors"}


def stages(image_size: int) -> OrderedDict[str, nn.Module]:
    """A 3x3 convolution with 32 channels and a dense layer of 128: images ``(B, 1, H, W)`` -> features ``(B, 128)``."""
    side = (image_size - 2) // 2
    return OrderedDict(
        conv=nn.Sequential(nn.Conv2d(1, 32, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)),
        dense=nn.Sequential(nn.Flatten(), nn.Linear(32 * side * side, 128), nn.ReLU()),
    )
