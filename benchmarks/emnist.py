"""Compares how soon a CNN trained on MNIST tells the letters of EMNIST: plain SGD, by hand and by lit_ft, and ours.

    python benchmarks/emnist.py [--split balanced] [--rounds 5] [--choose]

Needs EMNIST in LIT_FT_DATA (or --data). All start from the same weights of the network; each turn is one thread in a
process of its own, with another seed a round. The seconds are those of training: start-up, validation and looking at
the test images do not count. --choose compares learning rates of configs/emnist_fast.yaml by the validation images.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peers.table import spread
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import transforms
from torchvision.datasets import EMNIST
from watch import HERE, Race, Racing, accuracy, fit, in_process

from lit_ft.backbones.sources import mnist_cnn
from lit_ft.data.modules.mnist import CLASS_NAMES
from lit_ft.memory import keep_freed_memory

GOALS = [0.80, 0.84, 0.86, 0.90]
BY_HAND, RECIPE, FAST = "by hand, SGD 0.01", "lit_ft, emnist_finetune", "lit_ft, emnist_fast"
RATES = (2e-3, 5e-3, 1e-2, 2e-2)
BATCH = 128


def network(num_classes: int) -> nn.Module:
    """The CNN of the recipe, with MNIST's weights and a new head."""
    model = nn.Sequential(
        OrderedDict(
            conv=nn.Sequential(nn.Conv2d(1, 32, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)),
            dense=nn.Sequential(nn.Flatten(), nn.Linear(32 * 13 * 13, 128), nn.ReLU()),
            head=nn.Linear(128, num_classes),
        )
    )
    published = mnist_cnn.tags("mnist_cnn")["MNIST"].read()
    state = mnist_cnn.fitted(model, published, mnist_cnn.input_spec("mnist_cnn", "MNIST"))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert missing == ["head.weight", "head.bias"]
    return model


def by_hand(root: str, split: str, seed: int) -> dict[str, Any]:
    """The source's recipe as a loop over torchvision's data set: SGD 0.01, batches of 128, 10 epochs."""
    torch.manual_seed(seed)
    first = 1 if split == "letters" else 0
    transform = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
            transforms.Lambda(lambda x: x.transpose(1, 2)),
        ]
    )
    options: dict[str, Any] = {"transform": transform, "target_transform": lambda label: label - first}
    train, _ = random_split(EMNIST(root, split, train=True, **options), [0.9, 0.1])
    loader = DataLoader(train, batch_size=BATCH, shuffle=True)
    test = EMNIST(root, split, train=False)
    images = ((test.data.transpose(1, 2).unsqueeze(1) / 255) - 0.1307) / 0.3081
    model = network(len(CLASS_NAMES[split]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    race, step = Race(GOALS), 0
    for _ in range(10):
        for batch, targets in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), targets).backward()
            optimizer.step()
            step += 1
            if race.look(step, lambda: accuracy(model, images, test.targets - first)):
                return {"reached": race.reached, "last": race.accuracy}
    return {"reached": race.reached, "last": race.accuracy}


def limit(split: str, optimizer_class: type[torch.optim.Optimizer], steps: int = 200) -> float:
    """Processor seconds of a step, forward and backward, on a batch that is already there, with freed memory kept."""
    keep_freed_memory()
    model = network(len(CLASS_NAMES[split])).to(memory_format=torch.channels_last)
    optimizer = optimizer_class(model.parameters(), lr=0.01, fused=True)  # type: ignore[call-arg]
    batch = torch.rand(BATCH, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(len(CLASS_NAMES[split]), (BATCH,))
    for i in range(steps + 10):
        if i == 10:
            start = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), targets).backward()
        optimizer.step()
    return (time.process_time() - start) / steps


def unpacked(root: Path, split: str, to: Path) -> Path:
    """A folder with the four files as torchvision's EMNIST reads them, which takes none that are gzipped."""
    (to / "EMNIST" / "raw").mkdir(parents=True)
    for name in (f"emnist-{split}-{p}-{k}-ubyte" for p in ("train", "test") for k in ("images-idx3", "labels-idx1")):
        path = root / "EMNIST" / "raw" / name
        packed = path.with_name(f"{name}.gz")
        if not path.is_file() and not packed.is_file():
            raise SystemExit(f"--data: there is no {path}; name the folder with EMNIST, or another --split")
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        (to / "EMNIST" / "raw" / name).write_bytes(content)
    return to


def ours(config: str, root: str, split: str, seed: int, *arguments: str, goals: list[float] = GOALS) -> dict[str, Any]:
    """A recipe as the command line runs it."""
    data = [f"--data.root={root}", f"--data.split={split}", f"--seed_everything={seed}"]
    return fit(Racing, {"goals": goals}, f"--config={HERE.parent / 'configs' / config}.yaml", *data, *arguments)


def turn(who: str, root: str, split: str, seed: int) -> dict[str, Any]:
    """One run of a contestant, in a process of its own."""
    if who == BY_HAND:
        given = ["--data", root, "--split", split, "--seed", str(seed), "--to", "{to}"]
        return in_process(str(HERE / "emnist.py"), *given)
    return ours("emnist_finetune" if who == RECIPE else "emnist_fast", root, split, seed)


def choose(root: str, split: str) -> None:
    """Prints the validation accuracy of some learning rates of emnist_fast."""
    for rate in RATES:
        found = [ours("emnist_fast", root, split, s, f"--model.lr={rate}", goals=[1.1])["val"] for s in (100, 101)]
        print(f"lr {rate:g}: validation accuracy {', '.join(f'{value:.2%}' for value in found)}", flush=True)


def table(found: dict[str, list[dict[str, Any]]], limits: dict[str, list[float]]) -> None:
    """Prints the seconds to each goal, how often they are of the first contestant, and how far from the limit."""
    for who, alone in limits.items():
        print(f"a step alone, on a batch that is there, of {who}: {spread([1e3 * s for s in alone], '.1f')} ms")
    for goal in (f"{goal:g}" for goal in GOALS):
        print(f"\n{goal} of the test images (min / median / max)")
        for who, turns in found.items():
            done = [one["reached"][goal] for one in turns if goal in one["reached"]]
            if len(done) < len(turns):
                last = spread([one["last"] for one in turns], ".3f")
                print(f"  {who:<26} reached in {len(done)} of {len(turns)} rounds (last: {last})")
                continue
            steps, wall, cpu = (list(values) for values in zip(*done, strict=True))
            share = [s * least / c for s, least, c in zip(steps, limits[who], cpu, strict=True)]
            print(
                f"  {who:<26} {spread(wall, '.1f')} s; by CPU time {spread(cpu, '.1f')} s; {spread(steps, '.0f')} steps"
            )
            line = f"  {'':<26} the steps alone take {spread(share, '.0%')} of the CPU time"
            if who != BY_HAND and all(goal in one["reached"] for one in found[BY_HAND]):
                ratio = [one["reached"][goal][1] / w for one, w in zip(found[BY_HAND], wall, strict=True)]
                line += f"; by hand it takes {spread(ratio, '.1f')} times as long"
            print(line)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("LIT_FT_DATA", "data"), help="the folder with EMNIST")
    parser.add_argument("--split", default="balanced", choices=CLASS_NAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--choose", action="store_true", help="compare learning rates, by validation")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.to:
        Path(args.to).write_text(json.dumps(by_hand(args.data, args.split, args.seed)))
        return
    if args.choose:
        choose(args.data, args.split)
        return
    found: dict[str, list[dict[str, Any]]] = {BY_HAND: [], RECIPE: [], FAST: []}
    limits: dict[str, list[float]] = {who: [] for who in found}
    with tempfile.TemporaryDirectory() as folder:
        root = str(unpacked(Path(args.data), args.split, Path(folder)))
        for seed in range(args.rounds):
            for who, turns in found.items():
                limits[who].append(limit(args.split, torch.optim.AdamW if who == FAST else torch.optim.SGD))
                turns.append(turn(who, root, args.split, seed))
                print(seed, who, json.dumps(turns[-1]), flush=True)
    table(found, limits)


if __name__ == "__main__":
    main()
