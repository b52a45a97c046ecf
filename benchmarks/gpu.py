"""Measures lit_ft on a CUDA GPU: its pace as a share of the model's step alone, a CIFAR-10 epoch, memory per phase.

    python benchmarks/gpu.py [share] [cifar] [memory] [--rounds 5]

All images are generated, as speed does not depend on them; all is in bf16 (mixed precision). ``--device cpu`` tries
the script out with tiny sizes, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from peers.table import spread
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from watch import Pace, Pacing, command_line_trainer

from lit_ft import FineTuneModule, GradualUnfreezing, ImageFolderDataModule
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit
from lit_ft.unfreezing.plan import PhaseConfig

CLASSES = 10
Turn = Callable[[Path], float]
"""Images a second of one turn of a contestant, which may write into the folder."""


@dataclass(frozen=True)
class Sizes:
    """How much is done in a turn.

    Args:
        device: ``cuda`` or ``cpu``.
        side: Height and width of the photos, in pixels.
        batch: Photos in a batch.
        steps: Steps of a turn that count.
        skip: Steps before those.
        cifar_batch: Images in a batch of the CIFAR-10 recipe.
        cifar_steps: Its steps of a turn.
        networks: Those that take photos; the first one also takes those of CIFAR-10.
    """

    device: str = "cuda"
    side: int = 224
    batch: int = 256
    steps: int = 20
    skip: int = 5
    cifar_batch: int = 128
    cifar_steps: int = 300
    networks: tuple[str, ...] = ("resnet50", "vit_b_16")


TINY = Sizes(
    "cpu", side=32, batch=4, steps=2, skip=1, cifar_batch=8, cifar_steps=4, networks=("resnet18", "squeezenet1_1")
)


class Generated(ArrayDataModule):
    """Random pixels."""

    test_name = "generated"
    class_names = [str(i) for i in range(CLASSES)]  # noqa: RUF012

    def __init__(self, count: int, side: int, shift: int, **common: Any) -> None:
        super().__init__(augment="basic", **common)
        self.basic_augment = ShiftFlip(shift=shift, flip=True)
        self.images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8)

    def read_splits(self) -> dict[Split, ArraySplit]:
        """All images for training."""
        return {"train": ArraySplit.whole(self.images, torch.arange(len(self.images)) % CLASSES)}


def write_photos(folder: Path, count: int) -> None:
    """Writes JPEGs of 500 x 375 pixels, as smooth as photos are, into a folder a class."""
    random = torch.Generator().manual_seed(0)
    for i in range(count):
        place = folder / str(i % CLASSES) / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = torch.randint(256, (38, 50, 3), dtype=torch.uint8, generator=random).numpy()
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(place, quality=90)


def module(network: str, side: int, classes: int | None = None, **options: Any) -> FineTuneModule:
    """The network with random weights."""
    return FineTuneModule(network, weights=None, input=InputConfig(size=side, resize=side), classes=classes, **options)


def by_lit_ft(model: FineTuneModule, data: L.LightningDataModule, steps: int, sizes: Sizes, folder: Path) -> float:
    """Its training, as the command line has it."""
    pacing = Pacing(str(folder / "pace.json"), sizes.skip)
    few = {"max_epochs": 1, "limit_train_batches": steps + sizes.skip, "limit_val_batches": 0}
    _fit(model, data, command_line_trainer(folder, pacing, **few, **_on(sizes)))
    return pacing.pace.found()["wall"]


def _on(sizes: Sizes) -> dict[str, Any]:
    return {"accelerator": sizes.device, "devices": 1, "precision": "bf16-mixed"}


def _fit(model: FineTuneModule, data: L.LightningDataModule, trainer: L.Trainer) -> None:
    """Fits, and says nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(model, datamodule=data)


def _clear() -> None:
    """Frees the memory of the models before: a trainer and its module know each other, so that they stay."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def by_hand(
    model: FineTuneModule, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]], sizes: Sizes,
    steps: int,
) -> float:  # fmt: skip
    """Images a second of a bare loop over normalised images that are on the device."""
    pace = Pace(sizes.skip)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for i in range(steps + sizes.skip):
            images, targets = next(batches)
            with torch.autocast(sizes.device, torch.bfloat16):
                loss = F.cross_entropy(model.head(model.backbone(images)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if sizes.device == "cuda" and i + 1 in (sizes.skip, steps + sizes.skip):
                torch.cuda.synchronize()
            pace.step(len(images))
    return pace.found()["wall"]


def step_alone(network: str, sizes: Sizes) -> float:
    """The limit: steps of the same model on one batch that is there."""
    model = module(network, sizes.side, CLASSES).to(sizes.device).train()
    images = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=sizes.device)
    images = images.contiguous(memory_format=model.backbone.memory_format)
    targets = torch.arange(sizes.batch, device=sizes.device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return by_hand(model, optimizer, iter(lambda: (images, targets), None), sizes, sizes.steps)


def share(rounds: int, sizes: Sizes) -> None:
    """Images/s at 224 px, and as a share of the model's step on synthetic data that is on the device."""
    count = sizes.batch * (sizes.steps + sizes.skip)
    spare = 2 * count  # half of the photos are left to validate
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        write_photos(photos, spare)
        arrays = Generated(count, sizes.side, sizes.side // 8, batch_size=sizes.batch)

        def run(network: str, data: L.LightningDataModule, to: Path) -> float:
            return by_lit_ft(module(network, sizes.side), data, sizes.steps, sizes, to)

        def files(**options: Any) -> L.LightningDataModule:
            return ImageFolderDataModule(str(photos), val_fraction=0.5, batch_size=sizes.batch, **options)

        for network in sizes.networks:
            turns: dict[str, Turn] = {
                "the step alone": lambda to: step_alone(network, sizes),  # noqa: B023 - called in this turn
                "lit_ft, arrays": lambda to: run(network, arrays, to),  # noqa: B023
                "lit_ft, photos": lambda to: run(network, files(), to),  # noqa: B023
                "lit_ft, photos, --data.cache": lambda to: run(network, files(cache=f"{folder}/cache"), to),  # noqa: B023
            }
            compare(f"{network}, {sizes.side} px, batches of {sizes.batch}", turns, rounds)


def crops(images: Tensor, model: FineTuneModule, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images that are on the device, cropped from a rim of 4 pixels and mirrored, as long as one asks."""
    count, side = len(images), images.shape[-1]
    padded = F.pad(images, [4] * 4).permute(0, 2, 3, 1)
    targets = torch.arange(count, device=images.device) % CLASSES
    line = torch.arange(side, device=images.device)
    while True:
        for rows in torch.randperm(count, device=images.device).split(batch):
            top, left = torch.randint(9, (2, len(rows), 1), device=images.device)
            columns = torch.where(torch.rand(len(rows), 1, device=images.device) < 0.5, line, line.flip(0))
            taken = padded[rows[:, None, None], (top + line)[:, :, None], (left + columns)[:, None, :]]
            yield model.normalise(taken.permute(0, 3, 1, 2)), targets[rows]


def cifar(rounds: int, sizes: Sizes) -> None:
    """Images/s of the CIFAR-10 recipe (45,000 images of 32 px, ResNet-50, SGD) against a bare loop on the GPU."""
    count = 45_000 if sizes.device == "cuda" else 10 * sizes.cifar_batch
    data = Generated(count, 32, 4, batch_size=sizes.cifar_batch)
    sgd: dict[str, Any] = {"class_path": "SGD", "init_args": {"momentum": 0.9}}

    def bare(to: Path) -> float:
        model = module(sizes.networks[0], 32, CLASSES).to(sizes.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        batches = crops(data.images.to(sizes.device), model, sizes.cifar_batch)
        return by_hand(model, optimizer, batches, sizes, sizes.cifar_steps)

    def ours(to: Path) -> float:
        model = module(sizes.networks[0], 32, optimizer=sgd, lr_scheduler=None)
        return by_lit_ft(model, data, sizes.cifar_steps, sizes, to)

    found = compare(
        f"CIFAR-10, batches of {sizes.cifar_batch}", {"a bare loop, data on the GPU": bare, "lit_ft": ours}, rounds
    )
    for name, rates in found.items():
        print(f"  an epoch of {count:,}: {name:<30}{spread([count / rate for rate in rates], '.2f')} s")


def compare(title: str, turns: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Prints the images a second of each contestant, and as a share of the first one's."""
    found: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(rounds + 1):
        for name, turn in turns.items():
            _clear()
            with tempfile.TemporaryDirectory() as folder:
                rate = turn(Path(folder))
            if i:  # the first round warms up
                found[name].append(rate)
    first = next(iter(found.values()))
    print(f"\n{title}: images/s, min / median / max of {rounds}, and as a share of the first")
    for name, rates in found.items():
        shares = [a / b for a, b in zip(rates, first, strict=True)]
        print(f"  {name:<32}{spread(rates, ',.0f'):<28}{spread(shares, '.3f')}", flush=True)
    return found


class Memory(Callback):
    """Notes the greatest memory that each epoch takes on the GPU, in GB."""

    def __init__(self) -> None:
        self.peaks: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets what was before."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes it."""
        self.peaks.append(torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else float("nan"))


def memory(rounds: int, sizes: Sizes) -> None:
    """Peak GPU memory of training the head alone, the last stage too, and all; an epoch each, so nothing is cached."""
    data = Generated(3 * sizes.batch, sizes.side, sizes.side // 8, batch_size=sizes.batch)
    for network in sizes.networks:
        peaks = []
        for _ in range(rounds):
            _clear()
            model = module(network, sizes.side)
            last = list(model.backbone.stage_modules())[-1]
            phases = [PhaseConfig(["head"], 1), PhaseConfig(["head", last], 1), PhaseConfig(["*"], 1)]
            noting, unfreezing = Memory(), GradualUnfreezing("phases", phases=phases)
            with tempfile.TemporaryDirectory() as folder:
                few = {"max_epochs": 3, "limit_val_batches": 0, "unfreezing": unfreezing}
                _fit(model, data, command_line_trainer(Path(folder), noting, **few, **_on(sizes)))
            peaks.append(noting.peaks)
        print(f"\n{network}, {sizes.side} px, batches of {sizes.batch}: peak GPU memory in GB, min / median / max")
        for name, values in zip(("head", f"head, {last}", "all"), zip(*peaks, strict=True), strict=True):
            print(f"  {name:<32}{spread(values, '.2f')}", flush=True)


TABLES: dict[str, Callable[[int, Sizes], None]] = {"share": share, "cifar": cifar, "memory": memory}


def main() -> int:
    """Prints the tables that are named; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try it out")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: needs a CUDA GPU, and torch sees none; --device cpu tries it with tiny sizes", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, tiny sizes"
    print(f"{where}, torch {torch.__version__}, lightning {L.__version__}")
    for name in args.tables or TABLES:
        TABLES[name](args.rounds, Sizes() if args.device == "cuda" else TINY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
