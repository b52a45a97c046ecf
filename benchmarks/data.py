"""Compares how fast lit_ft and torchvision bring images to a network: read, augment, normalise.

Run: python benchmarks/data.py [TABLE ...]   (all tables when none is named)

Each contestant has its turn in each round; a ratio is of two turns of the same round. The tables of what data files
take are made where LIT_FT_DATA has them.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peers.table import spread
from photos import tables as photo_tables
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lit_ft import FineTuneModule
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Augment, Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit

ROUNDS = 5
Turn = Callable[[], float]
"""One turn of a contestant; what it returns is better the higher it is."""


class Images(NamedTuple):
    """A kind of image, what is done to it, and the network that takes it."""

    name: str
    channels: int
    size: int
    augment: Augment
    network: dict[str, Any]


COLOUR = Images(
    "32x32x3, crop + flip + normalise",
    3,
    32,
    "basic",
    {"backbone": "resnet18", "stem": "small", "input": InputConfig(size=32, resize=32)},
)
GREY = Images("28x28, normalise", 1, 28, "none", {"backbone": "mnist_cnn"})


def per_second(count: int, batches: Iterable[Any]) -> float:
    """Images a second of going through the batches."""
    start = time.perf_counter()
    for _ in batches:
        pass
    return count / (time.perf_counter() - start)


def compare(title: str, turns: dict[str, Turn], unit: str = "images/s", rounds: int = ROUNDS) -> None:
    """Prints what each contestant does, and how many times as much the first does as each other one."""
    for turn in turns.values():  # imports, memory, workers
        turn()
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            rates[name].append(turn())
    ours, *others = rates
    print(f"{title} ({unit}, min / median / max of {rounds})")
    for name, values in rates.items():
        print(f"  {name:<50}{spread(values, ',.0f')}")
    for name in others:
        ratios = [a / b for a, b in zip(rates[ours], rates[name], strict=True)]
        print(f"  {'ratio to ' + name:<50}{spread(ratios, ',.1f')}")
    sys.stdout.flush()


class NoiseDataModule(ArrayDataModule):
    """Random pixels, as speed does not depend on them."""

    basic_augment = ShiftFlip(shift=4, flip=True)
    class_names = [str(i) for i in range(10)]  # noqa: RUF012
    test_name = "noise"

    def __init__(self, images: Tensor, **common: Any) -> None:
        super().__init__(**common)
        self.images = images

    def read_splits(self) -> dict[Split, ArraySplit]:
        """All images for training."""
        return {"train": ArraySplit.whole(self.images, torch.arange(len(self.images)) % 10)}


class AsTorchvision(Dataset[Any]):
    """What torchvision's CIFAR10 and MNIST do: an array, of which each image becomes one of PIL."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.data = images.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
        self.targets = (torch.arange(len(images)) % 10).tolist()
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image and its target."""
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def in_memory(kind: Images, count: int, augment: Augment | None = None, batch_size: int = 128) -> Turn:
    """An epoch through the loader that training uses, and the normalisation of the module."""
    images = torch.randint(0, 256, (count, kind.channels, kind.size, kind.size), dtype=torch.uint8)
    module = FineTuneModule(weights=None, classes=10, **kind.network)
    data = NoiseDataModule(
        images, augment=augment or kind.augment, batch_size=batch_size, spec=module.input_spec, split_seed=0
    )
    loader = data.train_dataloader()
    return lambda: per_second(count, (module.normalise(images) for images, _ in loader))


def by_torchvision(kind: Images, count: int, num_workers: int) -> Turn:
    """An epoch through torchvision's transforms of one PIL image at a time."""
    images = torch.randint(0, 256, (count, kind.channels, kind.size, kind.size), dtype=torch.uint8)
    augment = [transforms.RandomCrop(kind.size, padding=4), transforms.RandomHorizontalFlip()]
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5] * kind.channels, [0.25] * kind.channels)]
    transform = transforms.Compose([*(augment if kind.augment == "basic" else []), *normalise])
    loader = DataLoader(
        AsTorchvision(images, transform), 128, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    return lambda: per_second(count, loader)


def arrays() -> None:
    """Small images in memory against torchvision's pipeline."""
    for kind in (COLOUR, GREY):
        turns = {
            "lit_ft, batches of 128": in_memory(kind, 50_000),
            "torchvision in process": by_torchvision(kind, 4_000, num_workers=0),
            "torchvision, DataLoader with 2 workers": by_torchvision(kind, 10_000, num_workers=2),
        }
        compare(f"{kind.name}, one thread", turns)
        compare("  the same", {"lit_ft, batches of 32": in_memory(kind, 50_000, batch_size=32)})


def augments() -> None:
    """What the augmentations cost that take one image at a time."""
    names: tuple[Augment, ...] = ("basic", "trivial", "rand", "augmix")
    for kind in (COLOUR, GREY):
        title = f"{kind.channels} x {kind.size} x {kind.size}, --data.augment"
        compare(title, {name: in_memory(kind, 50_000 if name == "basic" else 500, name) for name in names}, rounds=3)


START = """
import sys, time, warnings
warnings.filterwarnings("ignore")
from lit_ft.data import CIFAR10DataModule, MNISTToEMNISTDataModule
import sklearn.model_selection, torchvision.datasets
data = eval(sys.argv[1])
start = time.perf_counter()
data.setup()
print(time.perf_counter() - start)
"""
SETS = {
    "MNIST": 'MNISTToEMNISTDataModule(domain="source")',
    "EMNIST letters": 'MNISTToEMNISTDataModule(split="letters")',
    "CIFAR-10": "CIFAR10DataModule()",
}


def starts() -> None:
    """Seconds until the images are at hand, at the first start and at three later ones, each in a new process."""
    for name, data in SETS.items():
        with tempfile.TemporaryDirectory() as cache:
            seconds = [_start(data, cache) for _ in range(4)]
        if None in seconds:
            print(f"{name}: not in LIT_FT_DATA")
            continue
        first, *later = [second for second in seconds if second is not None]
        print(f"{name}: first start {first:.2f} s, later {spread(later, '.3f')} s")


def _start(data: str, cache: str) -> float | None:
    done = subprocess.run(
        [sys.executable, "-c", START, data],
        env={**os.environ, "LIT_FT_CACHE": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "missing file" not in done.stderr:
        raise RuntimeError(done.stderr)
    return None if done.returncode else float(done.stdout)


def photos() -> None:
    """Photos in files against torchvision's pipeline, one thread each."""
    if not os.environ.get("LIT_FT_DATA"):
        print("flowers5: not in LIT_FT_DATA")
        return
    threads = torch.get_num_threads()
    for title, turns in photo_tables():
        compare(title, turns)
    torch.set_num_threads(threads)


def index() -> None:
    """A million files found, with time and memory, as index.py measures them."""
    subprocess.run([sys.executable, str(Path(__file__).with_name("index.py"))], check=True)


TABLES: dict[str, Callable[[], None]] = {
    "arrays": arrays,
    "augments": augments,
    "starts": starts,
    "photos": photos,
    "index": index,
}


def main() -> None:
    """Prints the tables that are named."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # a second one on shared CPUs makes small batches slower, by waiting for it
    for name in sys.argv[1:] or TABLES:
        print(f"== {name}: {TABLES[name].__doc__}")
        TABLES[name]()


if __name__ == "__main__":
    main()
