"""Images of a run for its loggers, and what is true of them and predicted in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from lit_ft.assets import replace_atomically
from lit_ft.backbones.backbone import StageOutput
from lit_ft.data.bands.preview import stretch
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.images.decode import formats, turn_upright
from lit_ft.data.loading.sampler import Picks, seed_view
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import printable
from lit_ft.evaluation.figures import as_rgb, draw_images, draw_plan, shorten
from lit_ft.evaluation.loggers import encode_picture, log_picture, takes_pictures
from lit_ft.runs import Run
from lit_ft.training.selected import ValidationOutputs
from lit_ft.unfreezing.callback import run_epochs
from lit_ft.unfreezing.view import run_plan, run_starts, stage_rates

SIDE = 112
"""Pixels of the longer side of a pictured image: 32 of 224 pixels take as long as an epoch of a head to compress."""

SPRITE_SIDE = 48
MAX_CHARACTERS = 19
"""Longest line of a caption that fits below an image."""


def draw_first_images(
    trainer: L.Trainer, module: Any, batch: Any, num_images: int, run: Run | None
) -> Image.Image | None:
    """Draws the first images of a run's first batch as the network gets them, augmented, erased and mixed, with labels.

    Only a batch that is a pair of uint8 images, or raw ones, and targets has a picture, where somebody takes it.

    Args:
        trainer: The trainer, whose loggers may take the picture.
        module: Its module.
        batch: The batch.
        num_images: Number of images.
        run: The run, whose folder gets it.
    """
    if not trainer.is_global_zero or not (run or takes_pictures(trainer)):
        return None
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return None
    if isinstance(batch[0], StageOutput):
        batch = trainer.strategy.batch_to_device(next(iter(cast(Any, trainer).train_dataloader.of_images())))
    images, targets = batch
    is_raw = getattr(getattr(module, "normalise", None), "is_raw", False)
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or is_raw):
        return None
    if hasattr(module, "pictured"):
        images, targets = module.pictured(batch, 0)
    captions = [_split(describe_target(target, module)) for target in targets[:num_images].cpu()]
    picture = draw_images(shrink(images[:num_images].cpu()), captions)
    if run:
        with replace_atomically(run.train_images) as unfinished:
            unfinished.write_bytes(encode_picture(picture, has_photos=True))
    return picture


def _split(text: str) -> list[str]:
    return [shorten(line, MAX_CHARACTERS) for line in text.split("\n")]


def caption(outputs: ValidationOutputs, row: int, module: Any) -> list[str]:
    """What is true of an image, and what is predicted."""
    logits = outputs.logits[row : row + 1]
    true, predicted, _ = point(outputs, row, module)
    if module.task.name == "multiclass":
        predicted = f"{shorten(predicted, 12)} {float(module.task.predict(logits).max()):.0%}"
    return [shorten(true, MAX_CHARACTERS), f"→ {shorten(predicted, MAX_CHARACTERS - 2)}"]


def point(outputs: ValidationOutputs, row: int, module: Any) -> list[str]:
    """What is true of an image, what is predicted, and whether that is right."""
    true = describe_target(outputs.targets[row], module)
    logits = outputs.logits[row : row + 1]
    predicted = module.task.predict(logits)[0]
    if module.task.name == "multiclass":
        found = describe_target(predicted.argmax(), module)
    else:
        found = describe_target(predicted > 0.5 if module.task.name == "multilabel" else predicted, module)
    return [true, found, "yes" if true == found else "no"]


def picture_plan(trainer: L.Trainer, module: L.LightningModule, epoch: int) -> Callable[[], None]:
    """A function that logs the picture of the plan as it is now, with those phases at their start that have begun."""
    plan, starts, step = run_plan(trainer, module), run_starts(trainer, module, epoch), trainer.global_step
    num_epochs, rates = run_epochs(trainer), stage_rates(trainer, initial=True)

    def log() -> None:
        if takes_pictures(trainer):
            log_picture(trainer, "plan", draw_plan(plan, starts, num_epochs, rates), step)

    return log


def describe_target(target: Tensor, module: Any) -> str:
    """A target in words: a class, its shares where images are mixed, labels, or numbers."""
    names, task = [printable(name) for name in module.class_names], module.task.name
    if task == "regression":
        return ", ".join(f"{value:.4g}" for value in target.reshape(-1).tolist())
    if target.ndim == 0:
        return str(names[int(target)])
    if task == "multilabel":
        return ", ".join(name for name, value in zip(names, target.tolist(), strict=True) if value > 0.5) or "none"
    shares = sorted(zip(target.tolist(), names, strict=True), reverse=True)[:2]
    return "\n".join(f"{shorten(name, 12)} {share:.0%}" for share, name in shares if share > 0)


def read_images(data: ImageDataModule[Any], rows: Tensor) -> Tensor:
    """Validation images as they are evaluated, uint8 ``(n, C, H, W)``, made small."""
    source = data.source("val", augment=False)
    ((images, _),) = source.read([Picks(rows, rows)], seed_view(0, 0))
    return shrink(_as_pixels(images, data))


def _as_pixels(images: Tensor, data: ImageDataModule[Any]) -> Tensor:
    """Images of a data module as uint8, on the CPU."""
    return images.cpu() if data.input_spec.bands is None else stretch(images)


def shrink(images: Tensor, side: int = SIDE) -> Tensor:
    """Images ``(B, C, H, W)`` whose longer side is at most so many pixels."""
    most = max(images.shape[2:])
    return resize(images, [one * side // most for one in images.shape[2:]]) if most > side else images


def read_sprites(data: ImageDataModule[Any], rows: Tensor) -> Tensor:
    """Validation images as squares, uint8 ``(n, 3, S, S)``; photos are decoded small, which is quick."""
    split = data.splits["val"]
    if isinstance(split, FileSplit) and data.input_spec.bands is None:
        return torch.stack([_read_sprite(split.paths.full(row)) for row in rows.tolist()])
    source, parts = data.source("val", augment=False), torch.split(rows, 256)
    images = (
        _as_pixels(images, data) for images, _ in source.read([Picks(part, part) for part in parts], seed_view(0, 0))
    )
    return torch.cat([as_rgb(resize(part, [SPRITE_SIDE] * 2)) for part in images])


def _read_sprite(path: str) -> Tensor:
    with Image.open(path, formats=formats()) as image:
        image.draft("RGB", (SPRITE_SIDE, SPRITE_SIDE))
        small = ImageOps.fit(turn_upright(image), (SPRITE_SIDE, SPRITE_SIDE))
    return cast(Tensor, pil_to_tensor(small))
