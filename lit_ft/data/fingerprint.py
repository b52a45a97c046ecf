"""Fingerprint of the images and splits of a run, compared when it is resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch

from lit_ft.data.loading.protocols import ImageSet, Split
from lit_ft.data.split import rows_by_class

Fingerprint = dict[str, Any]
"""Plain types, for a checkpoint.

``splits`` has, by split, the number and a hash of the names of the images of each class, or of all where there are
none; ``first``, of each class, or of all, a hash of the image that comes first by name.
"""


def digest(parts: Iterable[bytes]) -> str:
    """A short hash of some bytes, with where each part ends."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def fingerprint(image_sets: Mapping[Split, ImageSet], num_classes: int) -> Fingerprint:
    """The fingerprint of the splits of a data module.

    It has the names of all images, whatever their folder, and the content of one image of each class, by which two
    classes that were swapped are found although their files have the same names.
    """
    splits: dict[str, list[list[Any]]] = {}
    first: list[tuple[str, str]] = []
    for split, images in image_sets.items():
        if split == "predict":
            continue
        targets = images.targets
        has_classes = targets.ndim == 1 and not targets.is_floating_point()
        rows = rows_by_class(targets, num_classes) if has_classes else [torch.arange(len(targets))]
        parts = [images.part(some) for some in rows]
        labels = [] if has_classes else [targets.contiguous().numpy().tobytes()]
        splits[split] = [[len(part), digest([part.names_digest().encode(), *labels])] for part in parts]
        named = (part.first_image() if len(part) else None for part in parts)
        found = [(one[0], digest([one[1]])) if one else ("", "") for one in named]
        first = [min(filter(any, pair), default=("", "")) for pair in zip_longest(first, found, fillvalue=("", ""))]
    return {"splits": splits, "first": [content for _, content in first]}


def difference(then: Mapping[str, Any], now: Mapping[str, Any], class_names: list[str]) -> str | None:
    """How the images now differ from those of the fingerprint of a run, as the rest of a sentence, or nothing."""
    before, after = then["splits"], now["splits"]
    if before.keys() != after.keys():
        return f"with images for {', '.join(before)}, but now there are some for {', '.join(after)}"
    of = [f" of {name}" for name in class_names] if len(now["first"]) == len(class_names) else [""]
    for i, words in enumerate(of):
        counts = [sum(classes[i][0] for classes in splits.values()) for splits in (before, after)]
        if counts[0] != counts[1]:
            return f"with {counts[0]} images{words}, but now there are {counts[1]}"
    for split in after:
        for (count, _), (present, _), words in zip(before[split], after[split], of, strict=True):
            if count != present:
                return f"with {count} images{words} in {split}, but now there are {present}"
    # Of each class the content of an image, and the names of all.
    marks = [[splits["first"], *([digests for _, digests in part] for part in splits["splits"].values())]
             for splits in (then, now)]  # fmt: skip
    changed = [i for i in range(len(of)) if any(old[i] != new[i] for old, new in zip(*marks, strict=True))]
    for old, new in zip(*marks, strict=True):
        places = {mark: i for i, mark in enumerate(old)}
        for one in changed:
            other = places.get(new[one], one)
            if other != one and new[other] == old[one]:
                return f"in which {class_names[one]} and {class_names[other]} were the other way round"
    return f"with other images{of[changed[0]]}" if changed else None
