"""The epochs of each recipe as a share of what its loader and its network take alone.

    LIT_FT_DATA=FOLDER python benchmarks/roofline.py [--letters FOLDER] [--only image_folder emnist_fast]

FOLDER has ``flowers5``, ``MNIST``, ``cifar-10-batches-py`` and ``weights``; --letters names that of EMNIST letters.

Each recipe is a run of ``lit-ft fit`` in a process of its own with one thread and no worker, of a few batches an epoch.
After each epoch but the first, its loader is read alone, and a batch that is there goes through its network alone:
through what is frozen in inference mode, through the rest and the head forward and backward, without an optimizer. All
is CPU time, so one after the other they are the bound. Cached features, of which no bound knows, are off.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from peers.table import spread
from torch.nn.functional import cross_entropy
from transfer import NETWORKS
from watch import HERE, Pace, in_process

from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.loading.loader import Loader
from lit_ft.model.module import FineTuneModule

PHOTOS = "flowers5"
EPOCHS = 4  # of which the first does not count

SKIP = 1  # steps of an epoch


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        recipe: Its name.
        network: Its backbone, or the one that it is measured with.
        trained: What trains.
        images: The folder with its images, by the name that it must have; nothing where they come with a package.
        options: Further options.
        batches: Of an epoch.
        weights: The file below LIT_FT_DATA/weights, for a network whose weights come with no package. Where it is not
            there, they are random, which takes as long.
    """

    recipe: str
    network: str
    trained: str
    images: str = ""
    options: tuple[str, ...] = ()
    batches: int = 5
    weights: str = ""

    def missing(self, data: Path, letters: Path) -> str:
        """What it needs and is not there."""
        place = self._place(data, letters) / self.images
        return "" if not self.images or place.exists() else f"no {place.name}"

    def command(self, data: Path, letters: Path) -> list[str]:
        """The arguments of ``lit-ft``."""
        given = ["fit", f"--config={HERE.parent / 'configs' / self.recipe}.yaml", *self.options]
        if self.images:
            place = self._place(data, letters)
            given.append(f"--data.root={place / PHOTOS if self.images == PHOTOS else place}")
        if self.weights:
            file = data / "weights" / self.weights
            given.append(f"--model.weights={file if file.exists() else 'null'}")
        few = {"max_epochs": EPOCHS, "limit_train_batches": self.batches, "limit_val_batches": 1, "accelerator": "cpu"}
        given += [f"--trainer.{key}={value}" for key, value in few.items()]
        given += ["--data.num_workers=0"] if self.images == PHOTOS else []
        off = ["--feature_cache.views=0", "--checkpoint=null", "--report=null", "--trainer.default_root_dir={folder}"]
        return ["-m", "lit_ft", *given, *off, "--trainer.callbacks+=roofline.Roofline", "--trainer.callbacks.to={to}"]

    def _place(self, data: Path, letters: Path) -> Path:
        return letters if self.images == "EMNIST" else data


EMNIST = ("--data.split=letters",)
HEAD = ("--unfreeze.strategy=linear_probe", "--unfreeze.head_fit=trained")
ALL = ("--unfreeze.strategy=full", "--unfreeze.head_fit=trained")
ROWS = [
    Row("quickstart", "MNIST CNN", "head", options=HEAD, batches=10),
    Row("quickstart", "MNIST CNN", "all", options=ALL, batches=10),
    Row("mnist_pretrain", "MNIST CNN", "all", "MNIST", batches=40),
    Row("emnist_finetune", "MNIST CNN", "all", "EMNIST", EMNIST, 40),
    Row("emnist_fast", "MNIST CNN", "all", "EMNIST", EMNIST, 40),
]
for _network, (_backbone, _file) in NETWORKS.items():
    _named = f"--model.backbone={_backbone}"
    ROWS += [
        Row("image_folder", _network, "last stages", PHOTOS, (_named, "--refit=false"), weights=_file),
        Row("image_folder_gradual", _network, "head", PHOTOS, (_named, *HEAD), weights=_file),
        Row("image_folder_gradual", _network, "all", PHOTOS, (_named, *ALL), weights=_file),
    ]
ROWS += [
    Row("resnet50_features", "ResNet-50", "head", PHOTOS, batches=3, weights="torchvision_resnet50.pth"),
    Row("vgg16_frozen_mlp", "VGG-16", "head", PHOTOS, batches=3, weights="torchvision_vgg16.pth"),
    Row("vgg16_gap_dense", "VGG-16", "head", PHOTOS, batches=3, weights="torchvision_vgg16.pth"),
    Row("resnet50_cifar10", "ResNet-50", "all", "cifar-10-batches-py", weights="torchvision_resnet50.pth"),
]


class Roofline(Callback):
    """Measures epochs, and after each the loader and the network alone; images a second of CPU time.

    Args:
        to: The file for what is found.
    """

    def __init__(self, to: str) -> None:
        self.to = Path(to)
        self.found: dict[str, list[float]] = {"epoch": [], "loader": [], "network": []}
        self.pace = Pace(SKIP)
        self.batch: Any = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins."""
        self.pace = Pace(SKIP)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes a step."""
        self.pace.step(len(batch[0]))
        self.batch = batch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measures the bounds, and leaves no gradients."""
        if not trainer.current_epoch:
            return
        assert isinstance(pl_module, FineTuneModule)
        epoch, batches = self.pace.found()["cpu"], int(trainer.num_training_batches)
        rates = {"epoch": epoch, "loader": loader_alone(trainer.train_dataloader, batches)}
        rates["network"] = network_alone(pl_module, *self.batch, batches)
        pl_module.zero_grad()
        for name, rate in rates.items():
            self.found[name].append(rate)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes it."""
        self.to.write_text(json.dumps(self.found))


def loader_alone(loader: Any, batches: int) -> float:
    """Images a second of reading so many batches."""
    assert isinstance(loader, Loader)
    pace = Pace(SKIP)
    for images, _ in islice(loader.of_images(), batches):
        pace.step(len(images))
    return pace.found()["cpu"]


def network_alone(module: FineTuneModule, images: Any, targets: torch.Tensor, batches: int) -> float:
    """Images a second of what a network cannot do without to train as it does now."""
    given, depth = module.normalise(images), len(module.fixed_prefix())
    pace = Pace(SKIP)
    for _ in range(batches):
        with torch.inference_mode():
            frozen = module.backbone.prefix(given, depth) if depth else given
        # A copy, as autograd saves nothing of inference mode.
        features = module.backbone(StageOutput(frozen.clone(), depth) if depth else given)
        module.zero_grad()
        cross_entropy(module.head(features), targets).backward()
        pace.step(len(images))
    return pace.found()["cpu"]


def format_row(row: Row, found: dict[str, list[float]] | None, missing: str) -> str:
    """A row of the table; without figures the reason for that."""
    cells = [row.recipe, row.network, row.trained]
    if found is None:
        return f"| {' | '.join([*cells, f'not measured: {missing}', '', '', '', ''])} |"
    both = [1 / (1 / a + 1 / b) for a, b in zip(found["loader"], found["network"], strict=True)]
    rates = (found["loader"], found["network"], both, found["epoch"])
    shares = [a / b for a, b in zip(found["epoch"], both, strict=True)]
    return f"| {' | '.join([*cells, *(spread(rate, ',.0f') for rate in rates), spread(shares, '.2f')])} |"


def main() -> None:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({row.recipe for row in ROWS}), help="recipes; all")
    data, began = Path(os.environ.get("LIT_FT_DATA", "data")), time.perf_counter()
    parser.add_argument("--letters", type=Path, default=data, help="has EMNIST/raw")
    args = parser.parse_args()
    heads = ["recipe", "network", "trains", "loader", "network alone", "both", "epoch", "share of both"]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for row in ROWS:
        if not args.only or row.recipe in args.only:
            missing = row.missing(data, args.letters)
            found = None if missing else in_process(*row.command(data, args.letters))
            print(format_row(row, found, missing), flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
