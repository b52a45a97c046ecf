"""Compares how fast ResNet-50 trains on CIFAR-10: lit_ft's command line, loops by hand, and the steps alone.

    python benchmarks/cifar.py [--data FOLDER] [--rounds 5] [--steps 12]

Needs cifar-10-batches-py in LIT_FT_DATA (or --data). All have the network and the settings of
configs/resnet50_cifar10.yaml, crop and mirror their images, and are one thread in a process of their own each turn; a
DataLoader's worker is one process more. What counts are the steps after the first few.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from peers.table import spread
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10
from torchvision.models import resnet50
from watch import HERE, Pace, Pacing, fit, in_process

from lit_ft.memory import keep_freed_memory

BATCH, SKIP = 128, 2
OURS = "lit_ft, the command line"
BY_HAND = {
    "by hand": ("plain", 0),
    "by hand, channels_last": ("channels_last", 0),
    "by hand, channels_last, 1 worker": ("channels_last", 1),
    "one batch that is there, channels_last": ("limit", 0),
}


class Cifar(CIFAR10):
    """Torchvision's CIFAR10, which takes files of other checksums, too: those of repacked archives."""

    def _check_integrity(self) -> bool:
        return True

    def _load_meta(self) -> None:
        pass


def loader(root: str, workers: int) -> DataLoader[Any]:
    """Torchvision's pipeline of Pillow images, as its tutorials have it."""
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ]
    images = Cifar(root, transform=transforms.Compose(steps))
    return DataLoader(images, BATCH, shuffle=True, num_workers=workers)


def by_hand(root: str, kind: str, workers: int, steps: int) -> dict[str, float]:
    """The pace of a plain training loop, or of its steps alone."""
    model = resnet50(num_classes=10)
    layout = torch.contiguous_format if kind == "plain" else torch.channels_last
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    pace = Pace(SKIP)

    def step(images: Tensor, targets: Tensor) -> None:
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step(len(images))

    if kind == "limit":
        keep_freed_memory()
        images, targets = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=layout), torch.arange(BATCH) % 10
        for _ in range(steps):
            step(images, targets)
        return pace.found()
    for i, (images, targets) in enumerate(loader(root, workers)):
        step(images.contiguous(memory_format=layout), targets)
        if i + 1 == steps:
            break
    return pace.found()


def ours(root: str, steps: int, seed: int) -> dict[str, Any]:
    """The pace of the recipe as the command line runs it, with all that it writes and shows within an epoch."""
    recipe = HERE.parent / "configs" / "resnet50_cifar10.yaml"
    few = ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=1"]
    given = [f"--config={recipe}", "--model.weights=null", f"--data.root={root}", f"--seed_everything={seed}"]
    return fit(Pacing, {"skip": SKIP}, *given, *few, "--checkpoint=null")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("LIT_FT_DATA", "data"), help="has cifar-10-batches-py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of a turn, the first two of which do not count")
    parser.add_argument("--by-hand", choices=BY_HAND, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.by_hand:
        Path(args.to).write_text(json.dumps(by_hand(args.data, *BY_HAND[args.by_hand], args.steps)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *BY_HAND)}
    for seed in range(args.rounds):
        found[OURS].append(ours(args.data, args.steps, seed))
        for name in BY_HAND:
            given = ["--by-hand", name, "--data", args.data, "--steps", str(args.steps), "--to", "{to}"]
            found[name].append(in_process(str(HERE / "cifar.py"), *given))
        print(seed, {name: rates[-1] for name, rates in found.items()}, flush=True)
    for clock, told in (("wall", "by the clock"), ("cpu", "by the CPU time of the training process")):
        print(f"\nimages/s {told}, min / median / max of {args.rounds}; then lit_ft's, as a multiple of it")
        for name, rates in found.items():
            ratios = [a[clock] / b[clock] for a, b in zip(found[OURS], rates, strict=True)]
            print(f"  {name:<40}{spread([rate[clock] for rate in rates], '.1f'):<24}{spread(ratios, '.2f')}")


if __name__ == "__main__":
    main()
