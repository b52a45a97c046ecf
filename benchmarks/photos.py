"""The photos' part of ``benchmarks/data.py``: torchvision's pipeline of Pillow images against lit_ft's loader.

All give batches of 32 random crops of 224 pixels, mirrored or not, made by one thread: in the process that asks, or in
one worker, as training does. Torchvision's are normalised floats. Lit_ft's are uint8, normalised by the module: here on
the CPU, or, for the lines that say so, left to a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from lit_ft import FineTuneModule, ImageFolderDataModule
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.files.folders import find_folder

SPEC = InputSpec()
SCALE = (0.5, 1.0)  # of the area: what `--data.augment basic` takes, for both
Turn = Callable[[], float]


def write_photos(folder: Path, size: tuple[int, int], count: int) -> None:
    """Writes real photos as JPEGs of one size, into folders of four classes."""
    found = sorted((find_folder("flowers5", "LIT_FT_DATA") / "train").rglob("*.jpg"))
    for i, path in enumerate(found[:: max(1, len(found) // count)][:count]):
        place = folder / str(i % 4) / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS).save(place, quality=90)


def reference(folder: Path, workers: int) -> Iterable[Any]:
    """Torchvision's pipeline, as its reference scripts have it."""
    steps = [
        transforms.RandomResizedCrop(SPEC.size, SCALE),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(SPEC.mean, SPEC.std),
    ]
    images = ImageFolder(str(folder), transforms.Compose(steps))
    return DataLoader(images, 32, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def ours(folder: Path, workers: int, **options: Any) -> Iterable[Any]:
    """The loader that training uses."""
    data = ImageFolderDataModule(str(folder), num_workers=workers, spec=SPEC, val_fraction=0.25, **options)
    return data.train_dataloader()


def turn(loader: Iterable[Any], kept_blocks: int, finish: Callable[[Any], Any], clock: Callable[[], float]) -> Turn:
    """Images a second of an epoch, by some clock.

    Pillow as it comes keeps no memory from image to image; where lit_ft is imported, it does. So that the reference is
    what it is without lit_ft, each has its own setting, which a worker keeps from when it was started.
    """

    def take() -> float:
        Image.core.set_blocks_max(kept_blocks)
        Image.core.clear_cache()
        images = 0
        start = clock()
        for batch, _ in loader:
            images += len(finish(batch))
        return images / (clock() - start)

    return take


def as_it_is(batch: Any) -> Any:
    """The batch, not normalised here."""
    return batch


def tables() -> Iterator[tuple[str, dict[str, Turn]]]:
    """The contestants of each table: lit_ft first, then the reference."""
    torch.set_num_threads(1)
    model = FineTuneModule("squeezenet1_1", weights=None, classes=4)
    with tempfile.TemporaryDirectory() as folder:
        for name, size, count in (("500 x 375", (500, 375), 284), ("4000 x 3000", (4000, 3000), 22)):
            place = Path(folder, name)
            write_photos(place, size, count)
            # Other programs on the machine take less of the one than of the other.
            kinds = (
                (0, "in process, by CPU time", time.process_time),
                (1, "in one worker, by time", time.perf_counter),
            )
            for workers, where, clock in kinds:
                theirs = {"torchvision": turn(reference(place, workers), 0, as_it_is, clock)}
                plain, cached = ours(place, workers), ours(place, workers, cache=f"{place} cache")
                title = f"JPEG, {name}, {where}: "
                yield title + "decoded, normalised", {"lit_ft": turn(plain, 4, model.normalise, clock), **theirs}
                yield title + "decoded, normalised by a GPU", {"lit_ft": turn(plain, 4, as_it_is, clock), **theirs}
                yield title + "cached, normalised by a GPU", {"lit_ft": turn(cached, 4, as_it_is, clock), **theirs}
