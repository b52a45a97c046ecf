"""Measures how fast, and in how much memory, the images of a large folder are found, beside torchvision's ImageFolder.

    python benchmarks/index.py [--files 1000000] [--repeats 3] [--folder /tmp]

Makes empty files in 1,000 class folders, finds them in processes of their own, in turns, and removes them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.table import spread

NUM_CLASSES = 1000
WAYS = ("ImageFolder", "first start", "second start", "first setup", "second setup")


def make_folder(root: Path, num_files: int) -> None:
    """Makes empty files, an equal number a class."""
    for k in range(NUM_CLASSES):
        (root / f"n{k:08d}").mkdir()
        for i in range(num_files // NUM_CLASSES):
            os.mknod(root / f"n{k:08d}" / f"n{k:08d}_{i}.JPEG")
    time.sleep(3)  # folders that changed just now would not be trusted


def image_folder(root: str) -> tuple[int, Callable[[int], Any]]:
    """Finds the images with torchvision; their number, and what a worker looks one up with."""
    from torchvision.datasets import ImageFolder

    images = ImageFolder(root)
    return len(images), images.samples.__getitem__


def index(root: str) -> tuple[int, Callable[[int], Any]]:
    """Finds the images with lit_ft's index."""
    from lit_ft.data.files.image_index import index_images

    paths = index_images(Path(root), "--data.root").paths
    return len(paths), paths.full


def setup(root: str) -> tuple[int, Callable[[int], Any]]:
    """Sets a data module up: index, classes, a stratified split, and the number of images of each class."""
    from lit_ft.data import ImageFolderDataModule

    data = ImageFolderDataModule(root)
    data.verifies = False  # the files are empty
    data.setup()
    data.counts()
    return sum(data.sizes().values()), data.splits["train"].paths.full


def memory(kind: str, pid: str = "self") -> float:
    """Memory of a process, in MB, of a kind that Linux tells, as ``Pss``, or raises ``OSError`` where it has ended."""
    lines = Path("/proc", pid, "smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1e3


def measure(way: str, root: str) -> dict[str, float]:
    """Time in s and peak memory in MB of one way, and the memory of a worker after it has looked at half the images."""
    import torchvision.datasets  # noqa: F401 - imports do not count

    import lit_ft.data  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    number, look = {"ImageFolder": image_folder, "start": index, "setup": setup}[way.split()[-1]](root)
    found = {"images": number, "s": time.perf_counter() - began}
    found["MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    read, write = os.pipe()
    if os.fork() == 0:
        gc.disable()  # it would write to all that was imported, too
        start = memory("Private_Dirty")  # pages of a file that it maps are also the other workers'
        for i in range(0, number // 2):
            look(i)
        os.write(write, str(memory("Private_Dirty") - start).encode())
        os._exit(0)
    found["worker MB"] = float(os.read(read, 100))
    os.wait()
    return found


def run(way: str, root: Path) -> dict[str, float]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, "--folder", str(root)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.folder)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder, "images")
        root.mkdir()
        print(f"{args.files:,} empty files in {NUM_CLASSES:,} folders", flush=True)
        make_folder(root, args.files)
        rounds = []
        for i in range(args.repeats):
            for number, kind in enumerate(("start", "setup")):
                os.environ["LIT_FT_CACHE"] = str(Path(folder, f"cache-{i}-{number}"))
                if kind == "start":
                    rounds.append({"ImageFolder": run("ImageFolder", root)})
                rounds[-1] |= {way: run(way, root) for way in (f"first {kind}", f"second {kind}")}
    for unit in ("s", "MB", "worker MB"):
        print(f"\n{unit:<14}min / median / max  |  ImageFolder's, as a multiple of it")
        for way in WAYS:
            values = [found[way][unit] for found in rounds]
            ratios = [found["ImageFolder"][unit] / max(found[way][unit], 0.01) for found in rounds]
            print(f"{way:<14}{spread(values, '.2f')}  |  {spread(ratios, '.2f')}")
    assert {found[way]["images"] for found in rounds for way in WAYS} == {args.files // NUM_CLASSES * NUM_CLASSES}


if __name__ == "__main__":
    main()
