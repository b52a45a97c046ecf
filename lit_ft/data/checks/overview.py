"""What a data set looks like: its source, formats and sizes of its files, and samples of each class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lit_ft.console import format_bytes
from lit_ft.data.checks.findings import Inspected, Sample
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.base import ImageDataModule

MAX_CLASSES = 200
"""Classes of which samples are shown."""

_MOST_OF_A_CLASS = 6
_MOST_SAMPLES = 300


def name_source(data: ImageDataModule[Any]) -> str:
    """The folder or table of a data module; its class where it has none."""
    found = getattr(data, "table", None) or getattr(data, "root", None)
    return str(found) if found else type(data).__name__


def describe_files(inspected: Sequence[Inspected]) -> dict[str, str]:
    """Formats and sizes of files, by what they are, in words."""
    known = [seen for seen in inspected if seen.format]
    formats = Counter(seen.format for seen in known).most_common()
    facts = {
        "formats": ", ".join(f"{name} {count:,}" for name, count in formats),
        "width": _describe_range([seen.width for seen in known]),
        "height": _describe_range([seen.height for seen in known]),
        "all files": format_bytes(sum(max(0, seen.size) for seen in inspected)),
    }
    return {name: text for name, text in facts.items() if text}


def _describe_range(pixels: Sequence[int]) -> str:
    if not pixels:
        return ""
    low, high = min(pixels), max(pixels)
    return f"{low:,} pixels" if low == high else f"{low:,} to {high:,} pixels, median {median(pixels):,.0f}"


def choose_samples(targets: Tensor, names: Sequence[str]) -> dict[str, list[int]]:
    """Rows of images of each class or label, as far apart as can be; of numbers rows of all images.

    Args:
        targets: Classes ``(N,)``, labels ``(N, K)``, or numbers, which are floating.
        names: The classes.
    """
    if targets.is_floating_point():
        return {"": _spread(torch.arange(len(targets)), 4 * _MOST_OF_A_CLASS)}
    most = max(1, min(_MOST_OF_A_CLASS, _MOST_SAMPLES // max(1, len(names))))
    own = ((targets == k) if targets.ndim == 1 else (targets[:, k] > 0) for k in range(len(names[:MAX_CLASSES])))
    return {name: _spread(has.nonzero().flatten(), most) for name, has in zip(names, own, strict=False)}


def _spread(rows: Tensor, most: int) -> list[int]:
    places = torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()
    chosen: list[int] = rows[places].tolist()
    return chosen


def list_class_samples(
    images: Sequence[Sample], splits: Mapping[Split, Any], names: Sequence[str]
) -> tuple[dict[str, list[dict[str, str]]], dict[str, str]]:
    """Samples of each class as a report has them, and the pictures, by path, of those that are in no file.

    Args:
        images: The images of all splits, one split after the other.
        splits: The splits.
        names: The classes.
    """
    chosen = choose_samples(torch.cat([split.targets for split in splits.values()]), names)
    samples = {
        name: [{"path": images[row].path, "split": images[row].split, "class": images[row].label} for row in rows]
        for name, rows in chosen.items()
    }
    pictures, begin = {}, 0
    for split in splits.values():
        if not isinstance(split, FileSplit):
            for row in {row for rows in chosen.values() for row in rows if begin <= row < begin + len(split)}:
                pictures[images[row].path] = split.thumbnail(row - begin)
        begin += len(split)
    return samples, pictures
