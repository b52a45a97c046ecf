"""Compares the memory that lit_ft's and torchvision's data pipelines take, with all of their processes.

    LIT_FT_DATA=FOLDER python benchmarks/memory.py [--rounds 5]

Each goes through an epoch in a process of its own. Told is the most that it and its workers then have, above what it
had when all was imported; pages that processes share count once (Linux's PSS, looked at twenty times a second). The
images are those of ``data.py``: FOLDER has flowers5.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from data import COLOUR, Turn, by_torchvision, in_memory
from index import memory
from peers.table import spread
from photos import as_it_is, ours, reference, turn, write_photos

FILES: dict[str, Any] = {
    "lit_ft": (ours, 4),
    "lit_ft from --data.cache": (lambda folder, workers: ours(folder, workers, cache=f"{folder} cache"), 4),
    "torchvision": (reference, 0),
}


def files(name: str, folder: Path) -> Turn:
    """An epoch of photos in files."""
    pipeline, kept_blocks = FILES[name]
    return turn(pipeline(folder, 1), kept_blocks, as_it_is, time.perf_counter)


WAYS: dict[str, dict[str, Callable[[Path], Turn]]] = {
    "50,000 colour images of 32 pixels in memory": {
        "lit_ft": lambda folder: in_memory(COLOUR, 50_000),
        "torchvision in process": lambda folder: by_torchvision(COLOUR, 50_000, num_workers=0),
        "torchvision, 2 workers": lambda folder: by_torchvision(COLOUR, 50_000, num_workers=2),
    },
    "JPEG 500x375 to random crops of 224, 1 worker": {name: partial(files, name) for name in FILES},
}


def family(pid: str = "self") -> Iterator[str]:
    """A process, and all that it has started, and these."""
    yield pid
    for task in Path("/proc", pid, "task").glob("*/children"):
        with suppress(OSError):  # it has just ended
            for child in task.read_text().split():
                yield from family(child)


def in_all() -> float:
    """What all of them have, in MB; nothing where one has begun or ended meanwhile, as shares are then of two times."""
    total, processes = 0.0, list(family())
    for pid in processes:
        with suppress(OSError):
            total += memory("Pss", pid)
    return total if processes == list(family()) else 0.0


def most(make: Callable[[Path], Turn], folder: Path) -> float:
    """The most that a pipeline takes in an epoch, in MB."""
    before, seen, over = in_all(), [0.0], threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.append(in_all())

    looking = threading.Thread(target=look)
    looking.start()
    make(folder)()
    over.set()
    looking.join()
    return max(seen) - before


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if args.one:
        images, name, folder = args.one
        print(most(WAYS[images][name], Path(folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "photos")
        write_photos(place, (500, 375), 284)
        for images, ways in WAYS.items():
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.rounds):
                for name, values in found.items():
                    command = [sys.executable, __file__, "--one", images, name, str(place)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    values.append(float(done.stdout.splitlines()[-1]))
            print(f"{images} (MB, min / median / max of {args.rounds})")
            for name, values in found.items():
                ratios = [value / first for value, first in zip(values, found["lit_ft"], strict=True)]
                print(f"  {name:<30}{spread(values, ',.0f')}; {spread(ratios, '.2f')} of lit_ft's", flush=True)


if __name__ == "__main__":
    main()
