"""Measures how time and memory grow with the number of images, classes, stages and processes.

    python benchmarks/growth.py [AXIS ...] [--rounds 5]

Generated images of 8 x 8 pixels and a chain of small layers, so that what is measured is what lit_ft and Lightning do
beside the model. Each run has what the command line gives it: plan, report, TensorBoard, checkpoints. Times are of the
processor, of one thread; of several processes, times are the first's, and memory is that of the largest. The exponent p
of size^p is by least squares over the logarithms of all sizes; what is constant hides it, so the last column has that
of the two largest sizes.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from peers.table import spread
from torch import Tensor, nn
from watch import command_line_trainer

from lit_ft import FineTuneModule, GradualUnfreezing
from lit_ft.cli.config.defaults import CHECKPOINT
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit
from lit_ft.data.split import hold_out

BATCH, SKIP = 100, 5
Found = dict[str, float]


class Chain(nn.Module):
    """Layers one after the other: images ``(B, 1, 8, 8)`` -> features ``(B, 16)``."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.layers = nn.Sequential(first, *(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(depth - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Runs through all layers."""
        features: Tensor = self.layers(images)
        return features


class Generated(ArrayDataModule):
    """Random pixels, a quarter of them held out."""

    basic_augment = ShiftFlip(shift=1, flip=True)
    test_name = "generated"

    def __init__(self, num_images: int, num_classes: int, **common: Any) -> None:
        super().__init__(augment="basic", **common)
        self.num_images = num_images
        self._classes = num_classes

    @property
    def class_names(self) -> list[str]:
        """Numbers."""
        return [f"class {i}" for i in range(self._classes)]

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Each class has as many images as another, give or take one."""
        random = torch.Generator().manual_seed(0)
        images = torch.randint(256, (self.num_images, 1, 8, 8), dtype=torch.uint8, generator=random)
        whole = ArraySplit.whole(images, torch.arange(self.num_images) % self._classes)
        kept, held = hold_out(whole.targets, 0.25, self.split_seed, "--data.val_fraction")
        return {"train": whole.part(kept), "val": whole.part(held)}


class Growing(Callback):
    """Notes when the first step begins, and what the steps, the epoch and its validation take."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.began = time.process_time()
        self.found: Found = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The set-up ends, the epoch begins."""
        self.found["set-up s"] = time.process_time() - self.began
        self.began = time.process_time()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The first steps, with pictures for TensorBoard, do not count as steps."""
        if batch_idx == SKIP - 1:
            self.step = time.process_time()
        self.steps = batch_idx + 1 - SKIP

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The training part of the epoch ends."""
        if not trainer.sanity_checking:
            self.found["step ms"] = 1e3 * (time.process_time() - self.step) / self.steps
            self.validation = time.process_time()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch ends, but for the checkpoint."""
        if not trainer.sanity_checking:
            batches = sum(trainer.num_val_batches)  # type: ignore[arg-type]
            self.found["validation, ms a batch"] = 1e3 * (time.process_time() - self.validation) / batches
            self.found["epoch s"] = time.process_time() - self.began

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes it."""
        if trainer.is_global_zero:
            self.to.write_text(json.dumps(self.found))


def train(
    folder: Path,
    images: int = 20_000,
    classes: int = 10,
    depth: int = 3,
    batch_size: int = BATCH,
    unfreezing: Any = "full",
    epochs: int = 1,
    sampling: Any = "shuffle",
    **trainer: Any,
) -> Found:
    """A run as the command line makes it, ended after an epoch: its set-up, a step, an epoch and a validation."""
    torch.manual_seed(0)
    growing = Growing(folder / "found.json")
    chain = {
        "class_path": "growth.Chain",
        "init_args": {"depth": depth},
        "stages": {f"stage{i}": rf"layers\.{i}" for i in range(depth)},
        "channels": 1,
    }
    network: Any = {"backbone": chain, "input": {"size": 8, "resize": 8, "mean": [0.5], "std": [0.25]}}
    model = FineTuneModule(weights=None, **network)
    checkpoint = ModelCheckpoint(**CHECKPOINT, monitor="val/acc", mode="max")
    own = {"accelerator": "cpu", "devices": 1, "max_epochs": epochs, "enable_checkpointing": True, **trainer}
    callbacks = (growing, checkpoint, EndOfEpoch())
    made = command_line_trainer(folder, *callbacks, unfreezing=GradualUnfreezing(unfreezing), **own)
    made.fit(model, Generated(images, classes, batch_size=batch_size, sampling=sampling))
    found: Found = json.loads(growing.to.read_text())
    return found


class EndOfEpoch(Callback):
    """Ends a run after its first epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends it."""
        trainer.should_stop = True


def of_images(size: int, folder: Path) -> Found:
    """Images, in batches of 1,000 (of 100 where there are but 1,000)."""
    found = train(folder, images=size, batch_size=min(1000, size // 10))
    return {key: found[key] for key in ("set-up s", "epoch s")}


def of_classes(size: int, folder: Path) -> Found:
    """Classes, all of which come equally often (--data.sampling balanced), of 40,000 images."""
    found = train(folder, 40_000, size, sampling="balanced", limit_train_batches=60, limit_val_batches=20)
    return {key: value for key, value in found.items() if key != "epoch s"}


def of_stages(size: int, folder: Path) -> Found:
    """Stages, head included: set up to unfreeze one after the other, and steps in which all train."""
    few = {"images": 4_000, "depth": size - 1}
    gradual = train(folder, unfreezing="gradual", epochs=size, limit_train_batches=SKIP + 1, limit_val_batches=1, **few)
    return {"set-up s": gradual["set-up s"], "step ms": train(folder, **few)["step ms"]}


def of_processes(size: int, folder: Path) -> Found:
    """Processes that share an epoch of 40,000 images."""
    found = train(folder, 40_000, devices=size, strategy="ddp_fork" if size > 1 else "auto")
    return {"step ms": found["step ms"], "epoch s": found["epoch s"]}


AXES: dict[str, tuple[Callable[[int, Path], Found], list[int]]] = {
    "images": (of_images, [1_000, 10_000, 100_000, 1_000_000]),
    "classes": (of_classes, [10, 100, 1_000, 10_000]),
    "stages": (of_stages, [2, 10, 30, 100]),
    "processes": (of_processes, [1, 2]),
}


def apart(axis: str, size: int) -> Found:
    """What one run finds, in a forked process, and the peak of its memory above what the imports take."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "all.json")
        process = multiprocessing.get_context("fork").Process(target=_measured, args=(axis, size, place))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{axis} {size}: " + Path(folder, "said").read_text())
        found: Found = json.loads(place.read_text())
        return found


def _measured(axis: str, size: int, place: Path) -> None:
    said = os.open(place.with_name("said"), os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = AXES[axis][0](size, place.parent)
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    place.write_text(json.dumps({**found, "memory MB": (most - before) / 1e3}))


def exponent(sizes: list[int], values: list[float]) -> float:
    """The p of ``size ** p``, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def table(axis: str, sizes: list[int], rounds: list[list[Found]]) -> None:
    """Prints each quantity at each size, and its exponents."""
    print(f"\n{axis}: {AXES[axis][0].__doc__}")
    print(f"  {'median at':<24}{''.join(f'{size:>11,}' for size in sizes)}   exponent, min / median / max; the end's")
    for what in rounds[0][0]:
        values = [[found[what] for found in one] for one in rounds]
        middle = [median(one[i] for one in values) for i in range(len(sizes))]
        slopes = [exponent(sizes, one) for one in values]
        ends = [exponent(sizes[-2:], one[-2:]) for one in values]
        shown = "".join(f"{value:>11,.3g}" if value < 1e3 else f"{value:>11,.0f}" for value in middle)
        print(f"  {what:<24}{shown}   {spread(slopes, '.2f')}; {spread(ends, '.2f')}")


def main() -> None:
    """Prints the tables of the axes that are named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("axes", nargs="*", choices=[*AXES, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    for axis in args.axes or AXES:
        sizes = AXES[axis][1]
        table(axis, sizes, [[apart(axis, size) for size in sizes] for _ in range(args.rounds)])


if __name__ == "__main__":
    main()
