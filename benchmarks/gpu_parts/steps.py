"""Pace of training: as a share of the model's steps alone on a batch that is there, and of an epoch of CIFAR-10."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from peers.table import spread
from torch import Tensor
from torch.nn import functional as F
from watch import Pace, Pacing, command_line_trainer

from gpu_parts.inputs import CLASSES, Generated, build, write_photos
from gpu_parts.measuring import Measuring, Sizes, take_turns, wait
from lit_ft import FineTuneModule, ImageFolderDataModule

Batches = Iterator[tuple[Tensor, Tensor]]


def train(
    model: FineTuneModule, data: L.LightningDataModule, steps: int, sizes: Sizes, folder: Path, **options: Any
) -> float:
    """Images a second of lit_ft's training, as the command line has it."""
    torch.backends.cudnn.benchmark = False  # which a trainer that was asked for it leaves on
    pacing = Pacing(str(folder / "pace.json"), sizes.skip)
    few = {"max_epochs": 1, "limit_train_batches": steps + sizes.skip, "limit_val_batches": 0}
    fit(model, data, command_line_trainer(folder, pacing, **few, **on(sizes), **options))
    return pacing.pace.found()["wall"]


def on(sizes: Sizes) -> dict[str, Any]:
    """Options of a trainer on the device."""
    return {"accelerator": sizes.device, "devices": 1, "precision": "bf16-mixed"}


def fit(model: FineTuneModule, data: L.LightningDataModule, trainer: L.Trainer) -> None:
    """Fits, and says nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(model, datamodule=data)


def by_hand(
    model: FineTuneModule, optimizer: torch.optim.Optimizer, batches: Batches, sizes: Sizes, steps: int
) -> float:
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
            if i + 1 in (sizes.skip, steps + sizes.skip):
                wait(sizes)
            pace.step(len(images))
    return pace.found()["wall"]


def step_alone(model: FineTuneModule, sizes: Sizes) -> float:
    """The limit: steps of the same model on one batch that is there."""
    model.to(sizes.device).train()
    images = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=sizes.device)
    images = images.contiguous(memory_format=model.backbone.memory_format)
    targets = torch.arange(sizes.batch, device=sizes.device) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    found = by_hand(model, optimizer, iter(lambda: (images, targets), None), sizes, sizes.steps)
    model.cpu()
    return found


def share(measuring: Measuring) -> None:
    """Images/s at 224 px, and as a share of the model's step on synthetic data that is on the device.

    cuDNN chooses its kernels by trying them in the step alone, as with ``--trainer.benchmark true``, and by rules in
    lit_ft by default.
    """
    sizes, networks = measuring.sizes, measuring.sizes.networks
    count = sizes.batch * (sizes.steps + sizes.skip)
    arrays = Generated(count, sizes.side, sizes.side // 8, batch_size=sizes.batch)
    for row, network in enumerate(networks):
        model = build(network, sizes.side, CLASSES)

        def run(to: Path, model: FineTuneModule = model, **options: Any) -> float:
            return train(model, arrays, sizes.steps, sizes, to, **options)

        turns = {
            "the step alone": lambda to, model=model: step_alone(model, sizes),
            "lit_ft": run,
            "lit_ft, --trainer.benchmark true": lambda to, run=run: run(to, benchmark=True),
        }
        title = f"{network}, {sizes.side} px, batches of {sizes.batch}, images on the device"
        part = 0.8 / len(networks)  # of the whole time, the rest of which is for the photos
        take_turns(measuring.share(part / (1 - part * row)), title, turns, of="of the step")
    share_of_photos(measuring, networks[0], count)


def share_of_photos(measuring: Measuring, network: str, count: int) -> None:
    """The same from JPEG files, and from their resized copies."""
    sizes, model = measuring.sizes, build(network, measuring.sizes.side, CLASSES)
    held = max(2 * CLASSES, count // 20)
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder, "photos"), sizes.photos, count + held)

        def run(to: Path, **options: Any) -> float:
            photos = {"val_fraction": held / (count + held), "batch_size": sizes.batch, **options}
            return train(
                model, ImageFolderDataModule(f"{folder}/photos", **photos), sizes.steps, sizes, to, benchmark=True
            )

        turns = {
            "the step alone": lambda to: step_alone(model, sizes),
            "lit_ft, JPEG files": run,
            "lit_ft, --data.cache": lambda to: run(to, cache=f"{folder}/cache"),
        }
        take_turns(measuring, f"{network}, {sizes.side} px, photos by workers", turns, of="of the step")


def crops(images: Tensor, model: FineTuneModule, batch: int) -> Batches:
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


def cifar(measuring: Measuring) -> None:
    """The CIFAR-10 recipe (45,000 images of 32 px, ResNet-50, SGD) against a bare loop with the images on the GPU."""
    sizes = measuring.sizes
    data = Generated(sizes.cifar_images, 32, 4, batch_size=sizes.cifar_batch)
    sgd: dict[str, Any] = {"class_path": "SGD", "init_args": {"momentum": 0.9}}
    model = build(sizes.networks[0], 32, CLASSES, optimizer=sgd, lr_scheduler=None)

    def bare(to: Path) -> float:
        model.to(sizes.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        batches = crops(data.images.to(sizes.device), model, sizes.cifar_batch)
        found = by_hand(model, optimizer, batches, sizes, sizes.cifar_steps)
        model.cpu()
        return found

    def ours(to: Path, **options: Any) -> float:
        return train(model, data, sizes.cifar_steps, sizes, to, **options)

    turns = {
        "a bare loop, images on the device": bare,
        "lit_ft": ours,
        "lit_ft, --trainer.benchmark true": lambda to: ours(to, benchmark=True),
    }
    title = f"CIFAR-10, {sizes.networks[0]}, batches of {sizes.cifar_batch}"
    found = take_turns(measuring, title, turns, of="of the bare loop")
    for name, rates in found.items():
        seconds = spread([sizes.cifar_images / rate for rate in rates], ".2f")
        measuring.write(f"CIFAR-10, an epoch of {sizes.cifar_images:,}: {name}", f"{seconds} s")
