"""The protocol of a collection of networks, such as torchvision, from which backbones are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.cut import Network
from lit_ft.backbones.weights.pretrained import Published


class Source(Protocol):
    """A collection of networks; each module of this package that holds one has these functions."""

    def tags(self, name: str) -> dict[str, Published]:
        """The published weights of a network by their tag, with ``DEFAULT`` for the best of them."""

    def input_spec(self, name: str, tag: str | None) -> InputSpec:
        """The images that published weights were evaluated with; without a tag, those of the first weights."""

    def build(self, name: str, spec: InputSpec) -> Network:
        """The network with random weights, for images of the spec's size, and its stages."""

    def fitted(self, module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec) -> Mapping[str, Tensor]:
        """Published tensors with the names and the shapes that the network has for images of the spec's size."""
