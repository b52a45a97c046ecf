"""JPEG photos of 500 x 375 pixels to random crops: by lit_ft's workers, and decoded by nvJPEG on the GPU."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from gpu_parts.inputs import CLASSES, write_photos
from gpu_parts.measuring import Measuring, Sizes, take_turns, wait
from lit_ft import ImageFolderDataModule
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.images.decode import decode
from lit_ft.data.images.transforms import train_transform
from lit_ft.data.loading.loader import Loader
from lit_ft.data.loading.workers import workers_for

_BATCH = 256
_READERS = 8


def by_workers(folder: str, sizes: Sizes, **options: Any) -> Callable[[Path], float]:
    """Images a second that a loader of lit_ft brings to the device; its workers live on from turn to turn."""
    spec = InputSpec(size=sizes.side, resize=sizes.side)
    held = max(2 * CLASSES, sizes.decoded // 50) / sizes.decoded

    @cache
    def load() -> Loader:
        data = ImageFolderDataModule(folder, batch_size=_BATCH, val_fraction=held, spec=spec, **options)
        data.prepare_data()
        data.setup("fit")
        return data.train_dataloader()

    def turn(_: Path) -> float:
        loader, count, began = load(), 0, time.perf_counter()
        for images, _ in loader:
            count += len(images.to(sizes.device, non_blocking=True))
        wait(sizes)
        return count / (time.perf_counter() - began)

    return turn


def read_ahead(paths: Sequence[str]) -> Iterator[list[Tensor]]:
    """The bytes of the files of each batch, which threads read while the batch before is decoded."""
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(_READERS) as threads:
        waiting = [threads.submit(read_file, path) for path in batches[0]]
        for row in range(len(batches)):
            files = [one.result() for one in waiting]
            waiting = [threads.submit(read_file, path) for path in (batches[row + 1] if row + 1 < len(batches) else ())]
            yield files


def decode_on(files: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """The pixels of JPEG files, uint8 ``(3, H, W)``, on the device: on a GPU by nvJPEG."""
    return list(decode_jpeg(files, mode=ImageReadMode.RGB, device=sizes.device))


def on_device(paths: Sequence[str], sizes: Sizes, is_cropped: bool) -> Callable[[Path], float]:
    """Images a second that are decoded on the device, and augmented there as lit_ft does it on the CPU."""
    augment = train_transform(InputSpec(size=sizes.side, resize=sizes.side), "basic")

    def turn(_: Path) -> float:
        began = time.perf_counter()
        for files in read_ahead(paths):
            photos = decode_on(files, sizes)
            if is_cropped:
                torch.stack([augment(photo) for photo in photos])
        wait(sizes)
        return len(paths) / (time.perf_counter() - began)

    return turn


def photos(measuring: Measuring) -> None:
    """Photos a second by lit_ft's workers, and decoded on the GPU, from files that the system has in memory."""
    sizes, cpus = measuring.sizes, os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in write_photos(Path(folder, "photos"), sizes.photos, sizes.decoded)]
        place = str(Path(folder, "photos"))
        decoders = {"decoded on the device": False, "decoded and cropped on the device": True}
        number, most = workers_for(None, len(paths), _BATCH, 3 * sizes.side**2, None).number, max(1, cpus - 1)
        turns = {
            f"lit_ft, num_workers {number} (default)": by_workers(place, sizes),
            f"lit_ft, num_workers {most}": by_workers(place, sizes, num_workers=most),
            **{name: on_device(paths, sizes, is_cropped) for name, is_cropped in decoders.items()},
            f"lit_ft, num_workers {number}, --data.cache": by_workers(place, sizes, cache=f"{folder}/cache"),
        }
        title = f"JPEG 500x375 to random crops of {sizes.side} on the device, {cpus} CPU cores"
        take_turns(measuring, title, turns, of="of the first")
        compare_pixels(measuring, paths[:8])


def compare_pixels(measuring: Measuring, paths: Sequence[str]) -> None:
    """How far the pixels are from those that lit_ft decodes."""
    there = decode_on([read_file(path) for path in paths], measuring.sizes)
    apart = torch.cat(
        [(one.cpu().int() - decode(path).int()).abs().flatten() for one, path in zip(there, paths, strict=True)]
    )
    levels = f"{float(apart.float().mean()):.3f} levels of 255 on average, {int(apart.max())} at most"
    measuring.write("pixels that are decoded on the device, against those of lit_ft", levels)
