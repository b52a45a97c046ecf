"""Index of the images below a folder, cached between runs while no folder changes."""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_ft.data.files.derived_cache import Derived, change_time, load_or_derive, match_layout
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.files.folders import find_folder, holds, is_ignored, rank_kinds
from lit_ft.data.images.decode import (
    HEIC_ADVICE,
    RAW_ADVICE,
    RAW_SUFFIXES,
    image_suffixes,
    is_image,
    is_unread_heif,
    suffix_of,
)
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn

# The clock of a file system may tick this seldom: a folder that changed just before it was read may have changed again
# since, at the same time by its clock.
_COARSEST_CLOCK_NS = 2 * 10**9

_SHOWN = 5  # kinds of files that are passed over
_LIKE = {"text": (torch.uint8, 1), "stops": (torch.int64, 1)}

# As `os.fsencode`, which takes longer than all else for a million names.
_FILE_NAMES = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


@dataclass(frozen=True)
class ImageIndex:
    """The images below a folder, at any depth, in the order of `pathlib.Path`."""

    paths: PackedPaths
    folders: dict[str, tuple[int, int]]  # for each folder directly within, its first image, and that after its last
    passed_over: Counter[str]  # number of the files that are no images, by their suffix


def find_images_to_predict(given: str, key: str = "`data.predict`", raw: bool = False) -> FileSplit:
    """The image, or all images below the folder, that an option names, with their index as the target.

    ``raw`` is as of `index_images`.

    Raises:
        UserError: There is no such file or folder, or no image in it.
    """
    path = Path(given).expanduser()
    if os.path.isfile(path):  # unlike that of pathlib, it is false where a name is too long
        paths = PackedPaths.pack("", [path])
    else:
        path = find_folder(given, key)
        index = index_images(path, key, raw)
        warn_passed_over(path, key, index.passed_over)
        paths = index.paths
    if not len(paths):
        raise UserError(f"{key}: no images in {path}")
    return FileSplit(paths, torch.arange(len(paths)))


def index_images(folder: Path, key: str, raw: bool = False) -> ImageIndex:
    """Finds all images below a folder; links are followed, and what is hidden or left behind by tools is passed over.

    Args:
        folder: The folder.
        key: The option that names it, or the one above it.
        raw: Whether raw values of bands are read, and so arrays and DICOM are images, too.

    Raises:
        UserError: A folder cannot be read.
    """
    # Another list of suffixes would find other files, as would another version of this; and names are kept as text.
    suffixes = image_suffixes() | RAW_SUFFIXES if raw else image_suffixes()
    name = "\n".join([os.path.realpath(folder), "by content", _FILE_NAMES[0], *sorted(suffixes)])
    arrays, facts = load_or_derive("index", name, partial(_is_current, folder), _Scan(str(folder), key, suffixes))
    bounds = np.concatenate([np.zeros(1, np.int64), arrays["stops"].numpy()])
    folders = {name: (first, last) for name, (first, last) in facts["folders"].items()}
    paths = PackedPaths(str(folder), arrays["text"].numpy(), bounds[:-1], bounds[1:])
    return ImageIndex(paths, folders, Counter(facts["passed_over"]))


def warn_passed_over(folder: Path, key: str, passed_over: Counter[str]) -> None:
    """Says in one line how many files below a folder are no images, by suffix, if there are any."""
    if passed_over:
        count, most = passed_over.total(), rank_kinds(passed_over)[:_SHOWN]
        kinds = [f"{number:,} {suffix or 'without a suffix'}" for suffix, number in most]
        if len(passed_over) > _SHOWN:
            kinds.append(f"{count - sum(number for _, number in most):,} others")
        advice = f"; {HEIC_ADVICE}" if any(map(is_unread_heif, passed_over)) else ""
        advice += f"; {RAW_ADVICE}" if RAW_SUFFIXES & passed_over.keys() else ""
        rank_zero_warn(
            f"{key}: {count:,} file(s) below {folder} are no images, and not used: {', '.join(kinds)}{advice}"
        )


def _wanted(
    entries: Iterable[os.DirEntry[str]], passed_over: Counter[str], suffixes: frozenset[str]
) -> tuple[list[str], set[str]]:
    """The names of images and folders in order, and which are folders; counts what is neither."""
    names, folders = [], set()
    for entry in entries:
        name = entry.name
        if is_ignored(name):
            continue
        if holds(entry.is_dir):
            folders.add(name)
            names.append(name)
        elif name[name.rfind(".") :].lower() in suffixes:
            # No pipe, socket or device, which could be read from for ever. A link that leads nowhere counts as an
            # image, so that it is reported as one that cannot be read.
            if holds(entry.is_file) or not os.path.exists(entry.path):
                names.append(name)
        elif holds(entry.is_file):
            if is_image(entry.path, raw=suffixes >= RAW_SUFFIXES):
                names.append(name)
            else:
                passed_over[suffix_of(name)] += 1
    return sorted(names), folders


def _is_current(folder: Path, found: Derived) -> bool:
    """Whether an index is one, and no folder has changed since: to add or rename a file changes its folder."""
    arrays, facts = found
    if not (match_layout(arrays, _LIKE) and _are_names(**arrays) and _are_facts(facts, len(arrays["stops"]))):
        return False
    try:
        return all(
            change_time(os.stat(os.path.join(folder, name))) == then
            for name, then in zip(facts["below"], facts["changed"], strict=True)
        )
    except (OSError, ValueError):  # gone, or no name of a file
        return False


def _are_names(text: Tensor, stops: Tensor) -> bool:
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), stops])
    if not bool((bounds.diff() > 0).all()) or int(bounds[-1]) != len(text):
        return False  # an empty name, or something after the last
    # No name leads out of the folder: a scan finds none that begins with a dot.
    first, raw = text[bounds[:-1]], text.numpy().tobytes()
    return not bool(((first == ord("/")) | (first == ord("."))).any()) and b"/." not in raw and b"//" not in raw


def _are_facts(facts: dict[str, Any], num_images: int) -> bool:
    match facts:
        case {
            "folders": dict() as folders,
            "below": ["", *_] as below,
            "changed": list() as times,
            "passed_over": dict() as others,
            "settled": True,
        }:
            return (
                len(below) == len(times)
                and all(isinstance(name, str) for name in below)
                and all(type(count) is int and count > 0 for count in others.values())
                and all(
                    isinstance(span, list)
                    and [type(row) for row in span] == [int, int]
                    and 0 <= span[0] <= span[1] <= num_images
                    for span in folders.values()
                )
            )
    return False


class _Scan:
    """Reads every folder below one once; ``key`` is the option that names it, ``suffixes`` those of images."""

    def __init__(self, folder: str, key: str, suffixes: frozenset[str]) -> None:
        self.folder = folder
        self.key = key
        self.suffixes = suffixes
        self.text = bytearray()  # the names of the images, one after the other
        self.stops = array("q")  # where each ends
        self.folders: dict[str, list[int]] = {}
        self.below: list[str] = []  # every folder, and when it changed
        self.changed: list[int] = []
        self.passed_over = Counter[str]()

    def __call__(self) -> Derived:
        began = time.time_ns()
        self._read(self.folder, "", ())
        arrays = {
            # Copied, as an array that grew has room to spare, and one of no bytes has no memory to share.
            "text": torch.from_numpy(np.array(self.text, np.uint8)),
            "stops": torch.from_numpy(np.array(self.stops, np.int64)),
        }
        settled = max(self.changed) < began - _COARSEST_CLOCK_NS
        facts = {"folders": self.folders, "below": self.below, "changed": self.changed, "settled": settled}
        return arrays, {**facts, "passed_over": self.passed_over}

    def _read(self, folder: str, within: str, above: tuple[tuple[int, int], ...]) -> None:
        """Adds the images below a folder, which is ``within``, with a slash at the end, seen from the one above all."""
        try:
            facts = os.stat(folder)  # before it is read: what changes meanwhile is seen the next time
            itself = (facts.st_dev, facts.st_ino)
            if itself in above:  # a link to a folder that it is in
                return
            with os.scandir(folder) as entries:
                names, folders = _wanted(entries, self.passed_over, self.suffixes)
        except OSError as error:
            raise UserError(f"{self.key}: {folder} cannot be read ({error.strerror}); change or move it") from error
        self.below.append(within)
        self.changed.append(change_time(facts))
        start, text, stops = os.fsencode(within), self.text, self.stops
        for name in names:
            if name in folders:
                first = len(self.stops)
                self._read(os.path.join(folder, name), f"{within}{name}/", (*above, itself))
                if not within:
                    self.folders[name] = [first, len(self.stops)]
            else:
                text += start + name.encode(*_FILE_NAMES)
                stops.append(len(text))
