"""Small image sets for probes: generated photos that a small network tells apart, and their probes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_ft import ImageFolderDataModule
from lit_ft.probes.images import ProbeImages, read_images
from lit_ft.probes.survey import BackboneChoice

CLASSES = ("dots", "lines", "plain")
NETWORK = BackboneChoice("mnist_cnn", "MNIST")


def draw(kind: str, seed: int, size: int = 28) -> Image.Image:
    """A grey picture of a class, with noise of its own; ``other`` is of none."""
    random = np.random.default_rng([seed, len(kind)])
    pixels = random.normal(50, 8, (size, size))
    if kind == "dots":
        for y, x in random.integers(4, size - 5, (6, 2)):
            pixels[y : y + 3, x : x + 3] = 220
    elif kind == "lines":
        for x in random.integers(3, size - 4, 2):
            pixels[:, x : x + 3] = 220
    elif kind == "other":
        pixels = random.uniform(0, 255, (size, size))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photos(root: Path, numbers: Mapping[str, int]) -> Path:
    """A folder a class with so many photos, those of a class by number."""
    for name, number in numbers.items():
        (root / name).mkdir(parents=True)
        for i in range(number):
            draw(name, i).save(root / name / f"{i:03}.png")
    return root


def read_photos(root: Path, **options: object) -> ProbeImages:
    """The photos of such a folder."""
    return read_images(ImageFolderDataModule(root=str(root), **options))


def scale(features: Tensor, like: Tensor | None = None) -> NDArray[np.float64]:
    """Features centred and Pareto-scaled, as `Basis` has them, or like others."""
    like = (features if like is None else like).double()
    deviation = like.std(dim=0, correction=0)
    scale = (deviation * deviation[deviation > 0].mean()).sqrt().masked_fill(deviation == 0, 1.0)
    return ((features.double() - like.mean(dim=0)) / scale).numpy()


def clusters(num: int, width: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, in features of various means and scales."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(num) % num_classes
    centres = torch.randn(num_classes, width, generator=generator)
    features = centres[classes] / width**0.25 + torch.randn(num, width, generator=generator)
    return features * torch.logspace(-2, 2, width) + torch.linspace(-5, 50, width), classes
