"""Findings about the files of a data set, copies of images, splits and classes."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from lit_ft.data.bands.dicom import GREYS, name_grey
from lit_ft.data.bands.reader import BandReader, name_format
from lit_ft.data.checks.copies import MANY, THUMB, Group
from lit_ft.data.checks.report import Finding
from lit_ft.data.files.folders import is_ignored, rank_kinds
from lit_ft.data.images.decode import (
    HEIC_ADVICE,
    RAW_ADVICE,
    RAW_SUFFIXES,
    formats,
    is_image,
    is_unread_heif,
    suffix_of,
)
from lit_ft.data.images.loss import find_loss
from lit_ft.data.images.verification import problem_or_pixels
from lit_ft.data.loading.protocols import Split

IMBALANCE = 10.0
"""Largest class by smallest, from which on weights or balanced sampling are advised."""

FEW = 10
"""A class with fewer training images has few; one with less than 2 hurts."""

TINY = 32
"""An image whose shorter side has fewer pixels is reported."""

LONG = 4.0
"""An image whose longer side is more than so many times the shorter is reported: most of it is cut away by default."""


_RAW = "`data.bands` all gives the network their own values, of each band"
_INVERTED = "they are inverted within the range of their stored bits; look whether their units are those of the others"


@dataclass(frozen=True)
class Sample:
    """An image of a split."""

    path: str  # for sets in memory, a name such as ``MNIST/train/17``
    split: str
    label: str  # its class; the labels that it has, or its numbers, with commas, where it has no single class


@dataclass(frozen=True)
class Inspected:
    """Facts about an image file."""

    problem: str = ""  # why it cannot be read
    size: int = -1  # bytes; -1 where there is no file
    format: str = ""  # of its content, such as ``JPEG``
    width: int = 0  # as stored, like the height
    height: int = 0
    is_turned: bool = False  # whether its EXIF data ask to turn or mirror it
    loss: str = ""  # what is left out of it as a photo, such as ``16 bits``
    grey: str = ""  # of DICOM, where raw values are read: one of `GREYS`
    checksum: bytes = b""  # of its content, or its raw values; nothing where it cannot be read
    thumb: NDArray[np.uint8] | None = None  # ``(3, 32, 32)``, of the upright image; nothing likewise

    @property
    def is_huge(self) -> bool:
        """Whether it has more pixels than Pillow takes for safe; such an image is not decoded."""
        return self.width * self.height > (Image.MAX_IMAGE_PIXELS or float("inf"))


def inspect_file(path: Path, reader: BandReader | None = None) -> Inspected:
    """Reads a file once, as a photo or by a reader of raw values."""
    if reader is not None:
        return _inspect_raw(path, reader)
    try:
        seen = Inspected("", path.stat().st_size, *_header(path))
    except OSError as error:
        return Inspected(error.strerror or type(error).__name__)
    if seen.is_huge:
        return seen
    found = problem_or_pixels(path)
    if isinstance(found, str):
        return replace(seen, problem=found)
    upright = Image.fromarray(found.permute(1, 2, 0).numpy())
    thumb = np.asarray(upright.resize((THUMB, THUMB), Image.Resampling.BOX)).transpose(2, 0, 1)
    checksum = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    return replace(seen, loss=find_loss(path), checksum=checksum, thumb=np.ascontiguousarray(thumb))


def _inspect_raw(path: Path, reader: BandReader) -> Inspected:
    try:
        size, kind = path.stat().st_size, name_format(path, suffix_of(path.name))
    except OSError as error:
        return Inspected(error.strerror or type(error).__name__)
    found = problem_or_pixels(path, reader)
    if isinstance(found, str):
        return Inspected(found, size)
    kind = kind or _header(path)[0]
    checksum = hashlib.blake2b(found.contiguous().numpy().data, digest_size=16).digest()
    grey = name_grey(path) if kind == "DICOM" else ""
    return Inspected("", size, kind, found.shape[2], found.shape[1], grey=grey, checksum=checksum)


def _header(path: Path) -> tuple[str, int, int, bool]:
    """Format, width, height and whether it is turned; where there is no image, nothing of it."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # a header is harmless
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=formats()) as image:
                has_exif = image.format != "PNG" or "exif" in image.info  # else Pillow decodes it all, and looks behind
                turned = has_exif and image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
                return image.format or "", image.width, image.height, turned
    except Exception:  # a damaged file raises nearly anything; decoding it gives the reason
        return "", 0, 0, False
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def matches_format(path: str, format: str) -> bool:
    """Whether the suffix of a file belongs to the format of its content.

    >>> matches_format("a.JPG", "MPO"), matches_format("a.png", "JPEG")
    (True, False)
    """
    if format in ("NumPy", "DICOM"):  # the latter seldom has a suffix
        return True
    known = "JPEG" if format == "MPO" else format  # with something added: what phones write to .jpg files
    return Image.registered_extensions().get(Path(path).suffix.lower()) == known


def check_files(images: Sequence[Sample], inspected: Sequence[Inspected], raw: bool = False) -> list[Finding]:
    """What is wrong with single files, and which other files lie beside them.

    Args:
        images: The files.
        inspected: What was found out about each.
        raw: Whether raw values of bands are read.
    """
    both = list(zip(images, inspected, strict=True))
    known = [(image, seen, f"{seen.width}x{seen.height}") for image, seen in both if seen.format]
    read = [(image, seen, text) for image, seen, text in known if not seen.problem and not seen.is_huge]
    empty = [_item(image, reason="0 bytes") for image, seen in both if seen.size == 0]
    broken = [_item(image, reason=seen.problem) for image, seen in both if seen.problem and seen.size != 0]
    huge = [_item(image, reason=text) for image, seen, text in known if seen.is_huge]
    tiny = [_item(i, reason=text) for i, seen, text in read if min(seen.width, seen.height) < TINY]
    long = [_item(i, reason=text) for i, s, text in read if max(s.width, s.height) > LONG * min(s.width, s.height)]
    wrong = [_item(i, reason=f"is {s.format}") for i, s, _ in known if not matches_format(i.path, s.format)]
    turned = [_item(image) for image, seen, _ in read if seen.is_turned]
    reduced = [_item(image, reason=seen.loss) for image, seen, _ in read if seen.loss]
    inverted = [_item(image, reason=seen.grey) for image, seen, _ in read if seen.grey == GREYS[0]]
    num_others = sum(seen.grey == GREYS[1] for _, seen, _ in read)
    greys = f"are {GREYS[0]}, where {num_others:,} are {GREYS[1]}"
    ignored, convert = _find_ignored({Path(image.path).parent for image in images}, raw)
    whole = "see them whole with `data.fit` pad or squash, or crop them: most of them is cut away"
    out = "or leave them out with `data.on_bad_image` skip"
    kinds = (
        ("unreadable", True, "cannot be read (damaged, cut short, or no image)", f"fix or remove them, {out}", broken),
        ("empty", True, "have no content", f"copy them again or remove them, {out}", empty),
        ("huge", True, "have so many pixels that decoding them takes gigabytes", "scale them down", huge),
        ("suffix", False, "have the suffix of another format", "rename them; lit_ft reads them by content", wrong),
        ("tiny", False, f"are less than {TINY} pixels high or wide", "look whether they are thumbnails", tiny),
        ("long", False, f"are more than {LONG:g} times as long as wide", whole, long),
        ("reduced", False, "have more than 8 bits of three colours, and are reduced to that", _RAW, reduced),
        ("greys", False, greys, _INVERTED, inverted * (num_others > 0)),
        ("turned", False, "are turned upright by their EXIF data", "nothing to do: lit_ft turns them", turned),
        ("ignored", False, "beside the images are passed over", convert, ignored),
    )
    return [
        Finding(kind, hurts, f"{len(items):,} file(s) {what}", advice, len(items), items)
        for kind, hurts, what, advice, items in kinds
        if items
    ]


def _item(image: Sample, **more: Any) -> dict[str, Any]:
    return {"path": image.path, "split": image.split, "class": image.label, **more}


def _find_ignored(folders: Collection[Path], raw: bool) -> tuple[list[dict[str, Any]], str]:
    """Files beside the images that are passed over, and what to do about them."""
    found = [
        {"path": entry.path, "reason": suffix_of(entry.name) or "no suffix"}
        for folder in sorted(folders)
        for entry in os.scandir(folder)
        if not is_ignored(entry.name) and entry.is_file() and not is_image(entry.path, raw)
    ]
    kinds = Counter(item["reason"] for item in found)
    listed = ", ".join(f"{number} {kind}" for kind, number in rank_kinds(kinds)[:5])
    further = f"; {HEIC_ADVICE}" if any(map(is_unread_heif, kinds)) else ""
    further += f"; {RAW_ADVICE}" if RAW_SUFFIXES & kinds.keys() else ""
    advice = f"({listed}) convert those that are images to JPEG or PNG{further}"
    return sorted(found, key=lambda item: item["path"]), advice


def check_copies(images: Sequence[Sample], groups: Sequence[Group], often: Sequence[Sequence[int]]) -> list[Finding]:
    """Images that are there more than once: as placeholders, in two splits, in two classes, or needlessly."""
    placeholders = [{"same": "look", "images": [_item(images[row]) for row in rows]} for rows in often]
    leaks, contradictions, rest = [], [], []
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
            rest.append(found)
    several = "{:,} images in {:,} group(s) are"
    many = f"{{:,}} images show one picture at least {MANY} times ({{:,}} group(s))"
    look = "look whether it is a placeholder, such as 'image not found', and remove these"
    kinds = (
        ("placeholder", True, many, look, placeholders),
        ("leak", True, f"{several} in more than one split", "keep each in one split, else scores are too good", leaks),
        ("contradiction", True, f"{several} in more than one class", "decide for one class each", contradictions),
        ("duplicates", False, f"{several} there more than once in their class", "remove all but one if you like", rest),
    )
    copies = []
    for kind, hurts, what, advice, those in kinds:
        if count := sum(len(found["images"]) for found in those):
            copies.append(Finding(kind, hurts, what.format(count, len(those)), advice, count, groups=those))
    return copies


def check_classes(names: Sequence[str], counts: Mapping[Split, Sequence[int]]) -> list[Finding]:
    """Classes that are too small, too different in size, or not everywhere."""
    train = counts.get("train")
    if train is None or len(names) < 2:
        return []
    findings = []
    for kind, hurts, least, limit in (("too_few", True, 0, 2), ("few", False, 2, FEW)):
        items = [{"class": name, "images": n} for name, n in zip(names, train, strict=True) if least <= n < limit]
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
