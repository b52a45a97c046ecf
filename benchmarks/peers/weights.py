"""Writes weights to where torchvision looks for its published ones, which may not be at hand: random ones, or a file's.

Random ones are the network's own of a fixed seed; norm layers have the statistics of noise, so that features are of the
size of those of a trained network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision import models


def random(name: str) -> dict[str, torch.Tensor]:
    """The weights of a network that was never trained."""
    torch.manual_seed(0)
    network = models.get_model(name, weights=None).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(16, 3, 224, 224))
    return network.state_dict()


def main() -> None:
    """Prints where the weights of a network are."""
    name, folder, given = sys.argv[1:]
    place = Path(folder, "hub", "checkpoints", Path(urlparse(models.get_model_weights(name).DEFAULT.url).path).name)
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        weights = torch.load(given, weights_only=True) if given else random(name)
        torch.save(weights, place)
    print(place)


if __name__ == "__main__":
    main()
