"""Check of a data set before any training."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.data.bands.reader import BandReader
from lit_ft.data.checks.copies import Group, find_duplicates, find_placeholders
from lit_ft.data.checks.findings import Inspected, Sample, check_classes, check_copies, check_files, inspect_file
from lit_ft.data.checks.overview import describe_files, list_class_samples, name_source
from lit_ft.data.checks.report import Checked, Finding
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import sweep
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.split import class_counts
from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError


def check(data: ImageDataModule[Any]) -> Checked:
    """Reads every image of every split once.

    Args:
        data: A data module, not yet set up. Of photos every file is read; of sets in memory exact copies are found.

    Raises:
        UserError: The data cannot be found, or are of another kind.
    """
    began = time.monotonic()
    if not isinstance(data, PhotoDataModule | ArrayDataModule):
        raise UserError(f"`data`: lit-ft check takes photos in files and sets in memory, not {type(data).__name__}")
    splits, refusal = _splits(data)
    images = list_samples(data, splits)
    targets = {name: split.targets for name, split in splits.items() if not split.targets.is_floating_point()}
    counts = {name: class_counts(of_split, data.num_classes) for name, of_split in targets.items()}
    if data.in_files:
        reader = getattr(data, "reader", None)
        findings, groups, often, facts = _check_photos(images, bool(counts), reader)
    else:
        sums, groups = _hash_pixels(splits)
        findings, often, facts = [], find_placeholders(sums), dict[str, str]()
    if refusal:
        advice = "add images to the classes concerned, or change the option"
        findings = [Finding("split", True, refusal, advice, 1), *findings]
    findings = [*check_copies(images, groups, often), *findings, *check_classes(data.class_names, counts)]
    findings.sort(key=lambda finding: not finding.hurts)
    named = {str(name): dict(zip(data.class_names, numbers, strict=True)) for name, numbers in counts.items()}
    sizes = {str(name): len(split) for name, split in splits.items()}
    samples, pictures = list_class_samples(images, splits, data.class_names)
    return Checked(
        data=type(data).__name__,
        source=name_source(data),
        seconds=time.monotonic() - began,
        sizes=sizes,
        counts=named,
        findings=findings,
        facts=facts,
        samples=samples,
        pictures=pictures,
    )


def _check_photos(
    images: Sequence[Sample], have_classes: bool, reader: BandReader | None
) -> tuple[list[Finding], list[Group], list[list[int]], dict[str, str]]:
    """What is wrong with single files, those that show the same, the rows of placeholders, and facts about files."""
    inspected, thumbs, groups = _inspect(images, reader)
    if reader is not None:
        often = find_placeholders([seen.checksum for seen in inspected])
        return check_files(images, inspected, raw=True), groups, often, describe_files(inspected)
    # What is the same when it is small is the same picture, whatever its size, format and metadata.
    same = [b"" if s.thumb is None else hashlib.blake2b(s.thumb.data, digest_size=16).digest() for s in inspected]
    # In one class, many near copies may be frames of a film.
    mixed = [group.rows for group in groups if len({images[row].label for row in group.rows}) > 1]
    often = find_placeholders(same, thumbs, mixed if have_classes else [])
    return check_files(images, inspected), groups, often, describe_files(inspected)


def _inspect(
    images: Sequence[Sample], reader: BandReader | None
) -> tuple[list[Inspected], NDArray[np.uint8], list[Group]]:
    """Facts about files, their thumbnails ``(N, 3, 32, 32)``, and the copies among them.

    Of raw values, only exact copies are found, and there are no thumbnails: what small pictures of 8 bits have in
    common, a network may tell apart.
    """
    inspected = list(sweep([Path(image.path) for image in images], partial(inspect_file, reader=reader), "checking"))
    checksums = np.array([seen.checksum for seen in inspected], dtype="S16").view("V16")
    if reader is not None:
        return inspected, np.zeros((0, 3, 32, 32), np.uint8), find_duplicates(checksums, None)
    blank = np.zeros((3, 32, 32), np.uint8)
    thumbs = np.stack([blank if seen.thumb is None else seen.thumb for seen in inspected])
    return inspected, thumbs, find_duplicates(checksums, torch.from_numpy(thumbs))


def _hash_pixels(splits: Mapping[Split, Any]) -> tuple[list[bytes], list[Group]]:
    """Checksums of images that are in no files, and the exact copies among them."""
    sums: list[bytes] = []
    for split in splits.values():
        workers = 0 if isinstance(split, ArraySplit) else None  # to hash is quicker than to start a process
        sums += sweep(range(len(split)), partial(_hash_image, split), "checking", workers)
    return sums, find_duplicates(np.array(sums, dtype="S16").view("V16"), None)


def _hash_image(split: Any, row: int) -> bytes:
    return hashlib.blake2b(split.image(row).contiguous().numpy().tobytes(), digest_size=16).digest()


def find_copies(data: ImageDataModule[Any], splits: Mapping[Split, Any]) -> list[Group]:
    """Images of splits that show the same; rows are counted through all splits."""
    if data.in_files:
        return _inspect(list_samples(data, splits), getattr(data, "reader", None))[2]
    return _hash_pixels(splits)[1]


def _splits(data: ImageDataModule[Any]) -> tuple[dict[Split, Any], str]:
    """The splits as training gets them; where they cannot be made, what is given, and why."""
    if isinstance(data, PhotoDataModule):
        data.verifies = False
    try:
        data.setup()
    except UserCodeError:  # which would run again
        raise
    except UserError as error:
        if not isinstance(data, PhotoDataModule):
            raise
        return dict(data.read_given()), error.args[0]  # which raises what is wrong with the folder itself
    return {name: split for name, split in data.splits.items() if name != "predict"}, ""


def list_samples(data: ImageDataModule[Any], splits: Mapping[Split, Any]) -> list[Sample]:
    """The images of splits, one split after the other."""
    return [sample for name, split in splits.items() for sample in _samples(data, name, split)]


def _samples(data: ImageDataModule[Any], name: str, split: Any) -> list[Sample]:
    if isinstance(split, FileSplit):
        paths = [os.path.abspath(path) for path in split.paths]
    else:
        paths = [f"{type(data).__name__}/{name}/{row}" for row in range(len(split))]
    labels = _labels(split.targets, data.class_names)
    return [Sample(path, name, label) for path, label in zip(paths, labels, strict=True)]


def _labels(targets: Tensor, names: Sequence[str]) -> list[str]:
    if targets.ndim == 1 and not targets.is_floating_point():
        return [names[label] for label in targets.tolist()]
    if targets.is_floating_point():
        return [", ".join(f"{number:g}" for number in row) for row in targets.reshape(len(targets), -1).tolist()]
    return [", ".join(n for n, has in zip(names, row, strict=True) if has) for row in targets.tolist()]
