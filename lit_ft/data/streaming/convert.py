"""Conversion of photos into a streamed set, which `StreamDataModule` reads."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_ft.assets import name_unfinished
from lit_ft.console import progress_bar, rank_zero_print
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.streaming.stream_set import SET_FILE, SPLITS, TARGETS_FILE, StreamSet, check_litdata, pack
from lit_ft.errors import UserError


def convert(data: PhotoDataModule, folder: str | Path, chunk_bytes: int = 64 * 2**20) -> Path:
    """Writes the splits of photos into a new folder, each image file as it is, and returns the folder.

    The training images are written in a random order, the others in their own. The write is atomic.

    Args:
        data: The photos, with the splits that its options ask for.
        folder: The folder to make; ``train``, ``val``, ``test`` and ``set.json`` are in it.
        chunk_bytes: Most bytes in one chunk, of which a bucket gives one after the other.

    Raises:
        UserError: If the folder exists or cannot be written, or an image cannot be read.
    """
    check_litdata("`folder`")
    made = Path(folder).expanduser()
    if made.exists() or made.is_symlink():
        raise UserError(f"`folder`: {made} exists; name a folder that does not")
    if data.bands is not None:
        raise UserError("`data.bands`: a streamed set is of photos; leave it out")
    data.setup()
    partial = name_unfinished(made)
    try:
        partial.mkdir(parents=True)
        _write_set(partial, data, chunk_bytes)
        partial.rename(made)
    except OSError as error:
        raise UserError(f"`folder`: cannot write {made} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def _write_set(folder: Path, data: PhotoDataModule, chunk_bytes: int) -> None:
    splits = {name: split for name, split in data.splits.items() if name in SPLITS}
    base = os.path.commonpath([path.absolute().parent for split in splits.values() for path in split.paths])
    names = {
        name: [path.absolute().relative_to(base).as_posix() for path in split.paths] for name, split in splits.items()
    }
    for name, split in splits.items():
        order = torch.arange(len(split))
        if name == "train":  # so that a chunk holds all classes
            order = torch.randperm(len(split), generator=torch.Generator().manual_seed(data.split_seed))
        _write_split(folder / name, split, names[name], order, chunk_bytes)
    sizes = {str(name): len(split) for name, split in splits.items()}
    about = StreamSet(data.task, data.class_names, sizes, {n: names[n] for n in splits if n != "train"})
    (folder / SET_FILE).write_text(json.dumps(asdict(about), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_split(folder: Path, split: FileSplit, names: list[str], order: Tensor, chunk_bytes: int) -> None:
    """Writes one split, and prints its size."""
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_bytes=chunk_bytes)
    rows = order.tolist()
    with progress_bar(folder.name, len(rows)) as bar:
        for i, row in enumerate(rows):
            try:
                content = split.paths[row].read_bytes()
            except OSError as error:  # gone since the set was found to be readable
                raise UserError(f"{split.paths[row]}: cannot be read ({error.strerror}); fix or remove it") from error
            cache[i] = pack(names[row], content)
            bar.update()
    cache.done()
    cache.merge()
    targets = split.targets[order].numpy()
    if targets.dtype == np.int64:
        targets = targets.astype(np.min_scalar_type(int(targets.max())))
    np.save(folder / TARGETS_FILE, targets)
    chunks = list(folder.glob("*.bin"))
    size = sum(path.stat().st_size for path in chunks)
    rank_zero_print(f"  {folder.name:<6}{len(rows):>12,} images {size / 1e6:>12,.1f} MB  {len(chunks):>6,} chunks")
