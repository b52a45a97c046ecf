"""Findings of a check of a data set: what hurts a training, and what to do about it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lit_ft.data.checks.duplicates import Group
from lit_ft.data.checks.inspection import Inspected, matches_format
from lit_ft.data.checks.placeholders import MANY
from lit_ft.data.files.folders import is_ignored
from lit_ft.data.images.decode import HEIC_ADVICE, is_image, is_unread_heif, suffix_of
from lit_ft.data.loading.protocols import Split

IMBALANCE = 10.0
"""Largest class by smallest, from which on weights or balanced sampling are advised."""

FEW = 10
"""A class with fewer training images has few; one with less than 2 hurts."""

TINY = 32
"""An image whose shorter side has fewer pixels is reported."""

LONG = 4.0
"""An image whose longer side is more than so many times the shorter is reported: most of it is cropped away."""


@dataclass(frozen=True)
class Image:
    """An image of a split.

    Args:
        path: Where it is; for sets in memory, a name such as ``MNIST/train/17``.
        split: ``train``, ``val`` or ``test``.
        label: Its class; the labels that it has, or its numbers, with commas, where it has no single class.
    """

    path: str
    split: str
    label: str


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Args:
        kind: A name for programs, such as ``leak``.
        hurts: Whether it makes training fail or its figures wrong; the rest is worth knowing.
        what: What it is, in a line.
        advice: What to do about it.
        count: How many images, files or classes it concerns.
        items: Each of them with its particulars.
        groups: Images that show the same, where it is about these.
    """

    kind: str
    hurts: bool
    what: str
    advice: str
    count: int
    items: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checked:
    """What was checked, and what was found, the worst first.

    Args:
        data: Name of the data module.
        seconds: How long it took.
        sizes: Number of images by split.
        counts: Number of images by split and class, or label; of numbers there is none.
        findings: What was found.
    """

    data: str
    seconds: float
    sizes: dict[str, int]
    counts: dict[str, dict[str, int]]
    findings: list[Finding]

    @property
    def hurts(self) -> bool:
        """Whether anything was found that hurts."""
        return any(finding.hurts for finding in self.findings)


def _item(image: Image, **more: Any) -> dict[str, Any]:
    return {"path": image.path, "split": image.split, "class": image.label, **more}


def check_files(images: Sequence[Image], inspected: Sequence[Inspected]) -> list[Finding]:
    """What is wrong with single files."""
    both = list(zip(images, inspected, strict=True))
    known = [(image, seen, f"{seen.width}x{seen.height}") for image, seen in both if seen.format]
    read = [(image, seen, text) for image, seen, text in known if not seen.problem and not seen.is_huge]
    empty = [_item(image, reason="0 bytes") for image, seen in both if seen.size == 0]
    broken = [_item(image, reason=seen.problem) for image, seen in both if seen.problem and seen.size != 0]
    huge = [_item(image, reason=text) for image, seen, text in known if seen.is_huge]
    tiny = [_item(i, reason=text) for i, seen, text in read if min(seen.width, seen.height) < TINY]
    sides = [(i, text, sorted((seen.width, seen.height))) for i, seen, text in read]
    long = [_item(i, reason=text) for i, text, (short, far) in sides if far > LONG * short]
    wrong = [
        _item(i, reason=f"is {s.format}") for i, s, _ in known if not matches_format(Path(i.path).suffix, s.format)
    ]
    turned = [_item(image) for image, seen, _ in read if seen.is_turned]
    out = "or leave them out with `data.on_bad_image` skip"
    return _file_findings(
        ("unreadable", True, "cannot be read (damaged, cut short, or no image)", f"fix or remove them, {out}", broken),
        ("empty", True, "have no content", f"copy them again or remove them, {out}", empty),
        ("huge", True, "have so many pixels that decoding them takes gigabytes", "scale them down", huge),
        ("suffix", False, "have the suffix of another format", "rename them; lit_ft reads them by content", wrong),
        ("tiny", False, f"are less than {TINY} pixels high or wide", "look whether they are thumbnails", tiny),
        ("long", False, f"are more than {LONG:g} times as long as wide", "crop them: most of them is cut away", long),
        ("turned", False, "are turned upright by their EXIF data", "nothing to do: lit_ft turns them", turned),
    )


def check_split(refusal: str) -> list[Finding]:
    """Why the splits cannot be made, if so."""
    advice = "add images to the classes concerned, or change the option"
    return [Finding("split", True, refusal, advice, 1)] if refusal else []


def check_ignored(paths: Sequence[Path]) -> list[Finding]:
    """Files beside the images that are passed over."""
    found = []
    for folder in sorted({path.parent for path in paths}):
        for entry in os.scandir(folder):
            if not is_ignored(entry.name) and entry.is_file() and not is_image(entry.path):
                found.append({"path": entry.path, "reason": suffix_of(entry.name) or "no suffix"})
    kinds = Counter(str(item["reason"]) for item in found)
    listed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common(5))
    heic = f"; {HEIC_ADVICE}" if any(map(is_unread_heif, kinds)) else ""
    advice = f"({listed}) convert those that are images to JPEG or PNG{heic}"
    return _file_findings(
        ("ignored", False, "beside the images are passed over", advice, sorted(found, key=lambda i: i["path"]))
    )


def _file_findings(*kinds: tuple[str, bool, str, str, list[dict[str, Any]]]) -> list[Finding]:
    return [
        Finding(kind, hurts, f"{len(items):,} file(s) {what}", advice, len(items), items)
        for kind, hurts, what, advice, items in kinds
        if items
    ]


def check_placeholders(images: Sequence[Image], often: Sequence[Sequence[int]]) -> list[Finding]:
    """Pictures that are there so often that they are no photos of something."""
    if not often:
        return []
    groups = [{"same": "look", "images": [_item(images[row]) for row in rows]} for rows in often]
    count = sum(map(len, often))
    what = f"{count:,} images show one picture at least {MANY} times ({len(often):,} group(s))"
    advice = "look whether it is a placeholder, such as 'image not found', and remove these"
    return [Finding("placeholder", True, what, advice, count, groups=groups)]


def check_copies(images: Sequence[Image], groups: Sequence[Group], often: Sequence[Sequence[int]]) -> list[Finding]:
    """Images that are there more than once: in two splits, in two classes, or needlessly."""
    leaks, contradictions, others = [], [], []
    reported = {row for rows in often for row in rows}
    for group in groups:
        members = [images[row] for row in group.rows]
        found = {"same": group.same, "images": [_item(image) for image in members]}
        splits, labels = {image.split for image in members}, {image.label for image in members}
        if len(splits) > 1:
            leaks.append(found)
        if len(labels) > 1:
            contradictions.append(found)
        if len(splits) == len(labels) == 1 and not reported.issuperset(group.rows):
            others.append(found)
    copies = []
    for kind, hurts, what, advice, those in (
        ("leak", True, "are in more than one split", "keep each in one split, else scores are too good", leaks),
        ("contradiction", True, "are in more than one class", "decide for one class each", contradictions),
        ("duplicates", False, "are there more than once in their class", "remove all but one if you like", others),
    ):
        count = sum(len(found["images"]) for found in those)
        if those:
            what = f"{count:,} images in {len(those):,} group(s) {what}"
            copies.append(Finding(kind, hurts, what, advice, count, groups=those))
    return copies


def check_classes(names: Sequence[str], counts: Mapping[Split, Sequence[int]]) -> list[Finding]:
    """Classes that are too small, too different in size, or not everywhere."""
    findings = []
    train = counts.get("train")
    if train is None or len(names) < 2:
        return []
    few = [{"class": name, "images": n} for name, n in zip(names, train, strict=True) if n < 2]
    some = [{"class": name, "images": n} for name, n in zip(names, train, strict=True) if 2 <= n < FEW]
    for kind, hurts, limit, items in (("too_few", True, 2, few), ("few", False, FEW, some)):
        if items:
            what = f"{len(items):,} class(es) have less than {limit} images to train on"
            findings.append(Finding(kind, hurts, what, "add images, or leave these classes out", len(items), items))
    missing = [
        {"class": name, "split": split}
        for split, numbers in counts.items()
        for name, n, trained in zip(names, numbers, train, strict=True)
        if not n and trained
    ]
    if missing:
        what = f"{len(missing):,} class(es) of the training images are in another split without an image"
        advice = "add some, else their accuracy is not known"
        findings.append(Finding("one_split", True, what, advice, len(missing), missing))
    if min(train) and max(train) >= IMBALANCE * min(train):
        ends = [(names[i], train[i]) for i in (int(np.argmax(train)), int(np.argmin(train)))]
        what = f"classes differ {max(train) / min(train):.0f}-fold: " + ", ".join(f"{name} {n:,}" for name, n in ends)
        items = [{"class": name, "images": n} for name, n in ends]
        findings.append(Finding("imbalance", False, what, "try `data.sampling` balanced", 1, items))
    return findings
