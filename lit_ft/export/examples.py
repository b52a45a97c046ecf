"""The images that an exported file carries, so that it can be verified where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.image_index import find_images_to_predict
from lit_ft.data.images.decode import decode

NUM_EXAMPLES = 8

# The shorter side of each example, as a share of the one that images are resized to. Those of 1 are not resized, so
# that they compare the network alone; the others have their resizing compared, too.
_SIDES = (1.0, 0.5, 1.0, 1.25, 1.0, 0.75, 1.0, 1.0)
_LONGER = (1.0, 1.3, 1.0, 1.1, 1.0, 1.2, 1.0, 1.0)


def read_pixels(split: Any, row: int, channels: int, reader: BandReader | None = None) -> Tensor:
    """An image of a split of a data module, uint8 or raw ``(C, H, W)``, grey photos with the channels of a file."""
    if isinstance(split, FileSplit):
        path = split.paths.full(row)
        return decode(path) if reader is None else reader(path)
    pixels: Tensor = split.image(row)
    return pixels.expand(channels, -1, -1) if len(pixels) == 1 else pixels


def read_examples(split: Any, channels: int, reader: BandReader | None = None) -> list[Tensor]:
    """Some images of a split ``(C, H, W)``, spread over its classes."""
    return [read_pixels(split, row, channels, reader) for row in choose_rows(split.targets)]


def choose_rows(targets: Tensor, count: int = NUM_EXAMPLES) -> list[int]:
    """Rows ``(n,)`` of some images, spread over the classes.

    >>> choose_rows(torch.tensor([0, 0, 0, 0, 1, 1, 2, 1]), 3)
    [0, 3, 6]
    """
    order = targets.argsort(stable=True) if targets.ndim == 1 else torch.arange(len(targets))
    places = torch.linspace(0, len(order) - 1, min(count, len(order))).long()
    return [int(row) for row in order[places]]


def read_folder(folder: str, key: str, reader: BandReader | None = None) -> list[Tensor]:
    """Some images of a folder, or one image, that an option names.

    Raises:
        UserError: If there is none, or one cannot be read.
    """
    paths = find_images_to_predict(folder, key, raw=reader is not None).paths
    found = (paths[row] for row in choose_rows(torch.zeros(len(paths))))
    return [decode(path) if reader is None else reader(path) for path in found]


def draw_images(channels: int, side: int) -> list[Tensor]:
    """Patches of random colours that blend into each other, where there are no photos, or none may leave the house."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, (NUM_EXAMPLES, channels, 6, 6), generator=generator).float()
    smooth = torch.nn.functional.interpolate(drawn, size=(2 * side, 2 * side), mode="bilinear")
    return list(smooth.to(torch.uint8))


def draw_for(spec: InputSpec, channels: int) -> list[Tensor]:
    """Such patches for a network; where it takes raw values, these are within two deviations of the mean."""
    images = draw_images(channels, spec.resize)
    if spec.bands is None:
        return images
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return [(image - 127.5) / 64 * std + mean for image in images]


def shrink_examples(images: Sequence[Tensor], spec: InputSpec) -> list[Tensor]:
    """Images ``(C, H, W)`` as they are put into a file: cropped, and of a few sizes near that of the network."""
    return [
        _shrink(image, round(spec.resize * _SIDES[i % len(_SIDES)]), _LONGER[i % len(_LONGER)], upright=i % 4 == 3)
        for i, image in enumerate(images)
    ]


def _shrink(image: Tensor, side: int, longer: float, upright: bool) -> Tensor:
    side = max(1, side)
    size = [round(side * longer), side] if upright else [side, round(side * longer)]
    height, width = image.shape[1:]
    scale = max(size[0] / height, size[1] / width)
    whole = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    if max(whole) > 32 * side:  # very long: its whole would take much memory
        image, whole = F.center_crop(image, [min(height, 8 * width), min(width, 8 * height)]), size
    resized = F.resize(image, whole, InterpolationMode.BILINEAR, antialias=True)
    cropped: Tensor = F.center_crop(resized, size)
    return cropped
