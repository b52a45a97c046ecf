"""Decides what happens to the geometry of an image: augmentation of arrays and photos, and the eval transform."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_ft.backbones.spec import InputSpec


class ShiftFlip:
    """Random shift with zero padding, and optionally a horizontal flip, for batches of arrays.

    A shift by up to 4 pixels is the usual "pad 4, crop 32" of CIFAR-10 (He et al., 2016, arXiv:1512.03385, sec. 4.2).

    Args:
        shift: Most pixels to move by, in each direction.
        flip: Whether half of the images are mirrored.
    """

    def __init__(self, shift: int, flip: bool = False) -> None:
        self.shift = shift
        self.flip = flip

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws what happens to each sample in one epoch, int64 ``(N, 3)``: row and column offset, mirrored or not."""
        offsets = torch.randint(2 * self.shift + 1, (num_samples, 2), generator=generator)
        mirrored = torch.randint(2, (num_samples, 1), generator=generator)
        return torch.cat([offsets, mirrored if self.flip else torch.zeros_like(mirrored)], dim=1)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Applies what was drawn.

        Args:
            images: uint8 ``(B, C, H, W)``.
            drawn: The rows of `draw` that belong to them, ``(B, 3)``.

        Returns:
            uint8 ``(B, C, H, W)``.
        """
        s = self.shift
        size = images.shape[-2:]
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (s, s), (s, s)))
        # All crops as one strided view: numpy copies a picked window row by row, three times as fast as torch's
        # indexing, which goes byte by byte.
        windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(2, 3))
        top, left, mirrored = drawn.numpy().T
        moved = windows[np.arange(len(images)), :, top, left]
        flip = mirrored.astype(bool)
        if flip.any():
            moved[flip] = moved[flip][..., ::-1]
        return torch.from_numpy(moved)


def resize_square(images: Tensor, spec: InputSpec) -> Tensor:
    """Brings a batch ``(B, C, H, W)`` of square images to the network's size; nothing is cut off."""
    if images.shape[-2:] == (spec.size, spec.size):
        return images
    resized: Tensor = F.resize(images, [spec.size, spec.size], InterpolationMode(spec.interpolation), antialias=True)
    return resized


def train_transform(spec: InputSpec) -> v2.Transform:
    """Photo ``(C, H, W)`` -> ``(C, size, size)``: a random part of at least half the area, mirrored or not."""
    mode = InterpolationMode(spec.interpolation)
    crop = v2.RandomResizedCrop(spec.size, scale=(0.5, 1.0), interpolation=mode, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])
