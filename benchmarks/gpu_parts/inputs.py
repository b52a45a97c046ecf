"""Images and models of the GPU benchmark: all are generated, as speed does not depend on them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lit_ft import FineTuneModule
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit

CLASSES = 10


_DIFFERENT = 512


class Generated(ArrayDataModule):
    """Random pixels, of which some 500 images differ: to draw more takes longer than to train on them."""

    test_name = "generated"
    class_names = [str(i) for i in range(CLASSES)]  # noqa: RUF012

    def __init__(self, count: int, side: int, shift: int, **common: Any) -> None:
        super().__init__(augment="basic", **common)
        self.basic_augment = ShiftFlip(shift=shift, flip=True)
        images = torch.randint(256, (min(count, _DIFFERENT), 3, side, side), dtype=torch.uint8)
        self.images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]

    def read_splits(self) -> dict[Split, ArraySplit]:
        """All images for training."""
        return {"train": ArraySplit.whole(self.images, torch.arange(len(self.images)) % CLASSES)}


def write_photos(folder: Path, different: int, count: int) -> list[Path]:
    """Writes JPEGs of 500 x 375 pixels, as smooth as photos are, into a folder a class; further ones are links."""
    coarse = torch.randint(256, (different, 38, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    paths = [folder / str(i % CLASSES) / f"{i}.jpg" for i in range(max(count, different))]
    for place in {path.parent for path in paths}:
        place.mkdir(parents=True, exist_ok=True)

    def write(row: int) -> None:
        photo = Image.fromarray(coarse[row].numpy()).resize((500, 375), Image.Resampling.BICUBIC)
        photo.save(paths[row], quality=90)

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(different)))
    for row in range(different, len(paths)):
        os.link(paths[row % different], paths[row])
    return paths


def build(network: str, side: int, classes: int | None = None, **options: Any) -> FineTuneModule:
    """The network with random weights."""
    return FineTuneModule(network, weights=None, input=InputConfig(size=side, resize=side), classes=classes, **options)
