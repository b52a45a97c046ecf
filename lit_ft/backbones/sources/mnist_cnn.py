"""The small network of the MNIST recipe, whose weights come with the package."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.chain import Network
from lit_ft.backbones.partition.cut import assign
from lit_ft.backbones.weights.pretrained import Published

NAME = "mnist_cnn"


def tags(name: str) -> dict[str, Published]:
    """Trained on MNIST by the recipe ``mnist_pretrain``."""
    file = "mnist_cnn.safetensors"
    mnist = Published(f"{name} MNIST", file, others=(Path(__file__).parent / file,))
    return {"MNIST": mnist, "DEFAULT": mnist}


def input_spec(name: str, tag: str | None) -> InputSpec:
    """MNIST's own images."""
    return InputSpec(size=28, resize=28, interpolation="bilinear", mean=(0.1307,), std=(0.3081,))


def licence(name: str, tag: str) -> str:
    """That of this package, with which they come."""
    return "They come with lit_ft, under its licence (Apache-2.0)."


def build(name: str, spec: InputSpec) -> Network:
    """A 3x3 convolution with 32 channels and a dense layer of 128: images ``(B, 1, H, W)`` -> features ``(B, 128)``."""
    side = (spec.size - 2) // 2
    module = nn.Sequential(
        OrderedDict(
            conv=nn.Sequential(nn.Conv2d(1, 32, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)),
            dense=nn.Sequential(nn.Flatten(), nn.Linear(32 * side * side, 128), nn.ReLU()),
        )
    )
    stages = {"conv": "conv", "dense": "dense"}
    return Network(module, list(stages), assign(module, stages))


def fitted(module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec) -> Mapping[str, Tensor]:
    """The tensors as they are: a dense layer cannot be fitted to another size of image.

    Those of the package are numbers in half precision, of which the file has all first bytes before all second ones, as
    HDF5's filter ``shuffle`` does it: so they take 7% less space in a wheel.
    """
    return {name: _join(value) if value.dtype == torch.uint8 else value for name, value in state.items()}


def _join(parts: Tensor) -> Tensor:
    """Numbers in half precision, of their bytes ``(2, ...)``."""
    return parts.movedim(0, -1).contiguous().view(torch.float16).squeeze(-1)
