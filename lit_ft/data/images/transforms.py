"""Geometry of images: augmentation of arrays and photos, and the eval transform."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.loading.protocols import Augment

_LEAST_AREA = 0.5
"""Share of a photo that a random part of it has at least."""


@dataclass(frozen=True)
class ShiftFlip:
    """Random shift with zero padding, and optionally a horizontal flip, for batches of arrays.

    A shift by up to 4 pixels is the usual "pad 4, crop 32" of CIFAR-10 (He et al., 2016, arXiv:1512.03385, sec. 4.2).
    """

    shift: int  # most pixels to move by, in each direction
    flip: bool = False  # whether half of the images are mirrored

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws what happens to each sample in one epoch, int64 ``(N, 3)``: row and column offset, mirrored or not."""
        offsets = torch.randint(2 * self.shift + 1, (num_samples, 2), generator=generator)
        mirrored = torch.randint(2, (num_samples, 1), generator=generator)
        return torch.cat([offsets, mirrored if self.flip else torch.zeros_like(mirrored)], dim=1)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Shifts images, uint8 ``(B, C, H, W)``, by their rows of `draw`, ``(B, 3)``, which are on the CPU."""
        size, channels, height, width = images.shape
        top, left, mirrored = drawn.unbind(1)
        which = torch.arange(size)
        if self.flip:
            flipped = mirrored.nonzero().squeeze(1)
            images = torch.cat([images, images.index_select(0, flipped.to(images.device, non_blocking=True)).flip(3)])
            which[flipped] = torch.arange(size, len(images))
            # The part that is mirrored is, of the mirrored image, the one as far from the other side.
            left = torch.where(mirrored.bool(), 2 * self.shift - left, left)
        padded = pad(images, [self.shift] * 4)
        row, channel = padded.stride(2), padded.stride(1)
        first = (which * padded.stride(0) + top * row + left).to(images.device, non_blocking=True)
        lines = torch.arange(height, device=images.device) * row
        lines = lines + torch.arange(channels, device=images.device).unsqueeze(1) * channel
        starts = (first.view(-1, 1, 1) + lines).flatten()
        # Whole lines of pixels are picked: indexing windows of two dimensions goes byte by byte.
        windows = padded.as_strided((padded.numel() - width + 1, width), (1, 1))
        return windows.index_select(0, starts).view(size, channels, height, width)


@dataclass(frozen=True, repr=False)
class PerImage:
    """A transform of torchvision for batches of arrays, each image ``(C, H, W)`` with its own parameters."""

    transform: v2.Transform

    def __repr__(self) -> str:
        """Says all that it does."""
        return f"PerImage({self.transform})"

    def draw(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draws the seed of each sample in one epoch, int64 ``(N,)``."""
        return torch.randint(2**63 - 1, (num_samples,), generator=generator)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Transforms each image of a batch ``(B, C, H, W)`` with its own seed; the global generator is left alone."""
        transformed = []
        for image, seed in zip(images, drawn.tolist(), strict=True):
            with random_from(seed):
                transformed.append(self.transform(image))
        return torch.stack(transformed)


@contextmanager
def random_from(seed: int) -> Iterator[None]:
    """Within it, torch's random numbers on the CPU follow from a seed; after it, they go on as before."""
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`: that would reseed the GPUs too, which `fork_rng` does not restore here.
        torch.default_generator.manual_seed(seed)
        yield


def policy(augment: Augment) -> v2.Transform | None:
    """What follows the basic augmentation: one of torchvision's policies with its own defaults, or nothing."""
    policies = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment, "augmix": v2.AugMix}
    return policies[augment]() if augment in policies else None


def resize_square(images: Tensor, spec: InputSpec) -> Tensor:
    """Brings a batch ``(B, C, H, W)`` of square images to the network's size; nothing is cut off."""
    if images.shape[-2:] == (spec.size, spec.size):
        return images
    resized: Tensor = F.resize(images, [spec.size, spec.size], InterpolationMode(spec.interpolation), antialias=True)
    return resized


def train_transform(spec: InputSpec, augment: Augment) -> v2.Compose:
    """Photo ``(C, H, W)`` -> ``(C, size, size)``: a random part of at least half the area, mirrored or not.

    Then what else the name of the augmentation stands for. Where the whole photo is evaluated, it is a part of the
    square that this becomes: at the end of a long photo there is always something that no part of the photo itself
    shows, and most of the parts are of its middle.
    """
    mode = InterpolationMode(spec.interpolation)
    crop = v2.RandomResizedCrop(spec.size, scale=(_LEAST_AREA, 1.0), interpolation=mode, antialias=True)
    further = policy(augment)
    side = math.ceil(spec.size / math.sqrt(_LEAST_AREA))  # so that the least part has as many pixels as the network
    square = [] if spec.fit == "crop" else replace(spec, size=side, resize=side).geometry().transforms
    return v2.Compose([*square, crop, v2.RandomHorizontalFlip(), *([further] if further else [])])
