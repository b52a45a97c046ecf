"""Verification of image files before a run: those that cannot be read stop it, or are left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.data.bands.dicom import GREYS, name_grey
from lit_ft.data.bands.reader import BandReader, name_format
from lit_ft.data.files.derived_cache import file_stamp_number, load_derived, match_layout, store_derived
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.images.decode import DECODING, decode, suffix_of, why_unread
from lit_ft.data.images.loss import format_reduced, note_loss
from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.workers import sweep
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn

OnBadImage = Literal["error", "skip"]

_MAX_NAMED = 10  # images that a message names

_MARKS = ("", "reduced", *GREYS)
"""What is to be known of an image that can be read; what is kept between runs has their places."""


class Verification:
    """The images of each split that cannot be read; they are found once for each time that they are applied."""

    def __init__(self) -> None:
        self._found: dict[Split, tuple[dict[int, str], dict[str, list[int]]]] = {}
        self._has_warned = False  # of what is left out of images, or of two kinds of them
        self.left_out: dict[Split, list[str]] = {}
        """By split, the images left out, and why; splits that were not used yet are missing."""

    def find(self, split: Split, files: FileSplit, reader: BandReader | None = None) -> dict[int, str]:
        """The rows of a split that cannot be read, and why; a process that has prepared the data has them already."""
        if split not in self._found:
            self._found[split] = find_unreadable(files.paths, reader)
        return self._found[split][0]

    def apply(
        self,
        used: Mapping[Split, FileSplit],
        on_bad_image: OnBadImage,
        class_names: Sequence[str],
        reader: BandReader | None = None,
    ) -> dict[Split, FileSplit]:
        """The splits that are used, without the images that cannot be read.

        Raises:
            UserError: Some cannot be read and ``on_bad_image`` is ``error``, or too few are left.
        """
        bad = {split: self.find(split, files, reader) for split, files in used.items()}
        marked = {
            mark: [files.paths[row] for split, files in used.items() for row in self._found[split][1].get(mark, ())]
            for mark in _MARKS
        }
        self._found.clear()  # those to predict may be others, or have changed, when they are verified again
        named = {split: [(used[split].paths[row], why) for row, why in rows.items()] for split, rows in bad.items()}
        lines = [f"{path} ({why})" for pairs in named.values() for path, why in pairs]
        message = format_unreadable(lines, sum(map(len, used.values())))
        if lines and on_bad_image == "error":
            hint = "fix or remove them, or leave them out with `data.on_bad_image` skip; lit-ft check lists all"
            raise UserError(f"`data.on_bad_image`: {message}; {hint}")
        kept = {split: drop_unreadable(split, files, bad[split], class_names) for split, files in used.items()}
        self.left_out |= {split: [f"{path}: {why}" for path, why in pairs] for split, pairs in named.items()}
        if lines:
            rank_zero_warn(f"`data.on_bad_image` skip: {message}; they are left out")
        reduced = format_reduced(marked["reduced"], sum(map(len, used.values())))
        for remark in filter(None, () if self._has_warned else (reduced, format_greys(marked))):
            rank_zero_warn(remark)
            self._has_warned = True
        return kept


def splits_to_verify(stage: str | None, splits: Collection[Split], tested: Split) -> list[Split]:
    """The splits that a stage of the Trainer uses, or all but ``predict``."""
    used: dict[str | None, list[Split]] = {"validate": ["val"], "test": [tested], "predict": ["predict"]}
    return used.get(stage, [split for split in splits if split != "predict"])


def format_unreadable(lines: Sequence[str], num_images: int) -> str:
    """How many images cannot be read, and the first of them.

    >>> format_unreadable(["a.png (cut short)"], 30)
    '1 of 30 images cannot be read: a.png (cut short)'
    """
    more = f" and {len(lines) - _MAX_NAMED:,} more" if len(lines) > _MAX_NAMED else ""
    return f"{len(lines):,} of {num_images:,} images cannot be read: {', '.join(lines[:_MAX_NAMED])}{more}"


def format_greys(paths: Mapping[str, Sequence[Path]]) -> str:
    """How many DICOM images have white as their lowest number, and how many black; nothing unless there are both."""
    inverted, others = (paths.get(kind, ()) for kind in GREYS)
    if not inverted or not others:
        return ""
    return (
        f"`data.bands`: {len(inverted):,} DICOM images are {GREYS[0]}, such as {inverted[0]}, and {len(others):,} are "
        f"{GREYS[1]}, such as {others[0]}; the former are inverted within the range of their stored bits, which may "
        "give other units than the latter have; look whether both are alike on the page of lit-ft check"
    )


def drop_unreadable(split: Split, files: FileSplit, bad: Collection[int], class_names: Sequence[str]) -> FileSplit:
    """A split without its bad rows; raises `UserError` where nothing is left, or no training image of a class."""
    if not bad:
        return files
    rest = files.part(torch.tensor([row for row in range(len(files)) if row not in bad], dtype=torch.long))
    message = f"`data.on_bad_image`: skip leaves no images of {split}"
    if not len(rest):
        raise UserError(f"{message}, as none of {len(files):,} can be read; fix them")
    if split == "train" and rest.targets.ndim == 1 and not rest.targets.is_floating_point():
        lost = [class_names[k] for k in sorted(set(files.targets.tolist()) - set(rest.targets.tolist()))]
        if lost:
            raise UserError(f"{message} of {', '.join(lost)}, as none can be read; fix them")
    return rest.indexed() if split == "predict" else rest


def find_unreadable(
    paths: PackedPaths, reader: BandReader | None = None
) -> tuple[dict[int, str], dict[str, list[int]]]:
    """The rows of the files that cannot be read, and why; and those of others that have a mark, by that.

    What was found to be readable before, and has not changed, is not read again. What was not is: a permission, a
    library or a limit may have been the reason. Files that are not there cannot be read.

    Args:
        paths: The files.
        reader: How raw values of bands are read, of which nothing is left out; photos when not given.
    """
    key = "\n".join([os.path.abspath(paths.root), str(DECODING), *([repr(reader)] if reader else [])])
    stamps = np.fromiter(map(_stamp, paths.absolute()), np.int64, len(paths))
    good, marks = _load_known(key)
    unknown = np.flatnonzero(~np.isin(stamps, good))
    bad: dict[int, str] = {}
    if len(unknown):
        looked = list(sweep(paths.part(torch.from_numpy(unknown)), partial(_look, reader), "reading each image once"))
        bad = {int(row): why for row, (why, _) in zip(unknown, looked, strict=True) if why}
        fine = np.array([not why for why, _ in looked])
        good, places = np.unique(np.concatenate([good, stamps[unknown][fine]]), return_index=True)
        marks = np.concatenate([marks, np.array([_MARKS.index(mark) for _, mark in looked])[fine]])[places]
        if fine.any():
            store_derived("verified", key, ({"good": torch.from_numpy(good), "marks": torch.from_numpy(marks)}, {}))
    rows = {mark: np.isin(stamps, good[marks == place]) for place, mark in enumerate(_MARKS) if mark}
    return bad, {mark: np.flatnonzero(are).tolist() for mark, are in rows.items()}


def _load_known(key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The stamps of files that were read in an earlier run, and the mark of each, by its place in `_MARKS`."""
    arrays, _ = load_derived("verified", key) or ({}, {})
    if not match_layout(arrays, {"good": (torch.int64, 1), "marks": (torch.int64, 1)}):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    good, marks = arrays["good"].numpy(), arrays["marks"].numpy()
    return (good, marks) if len(good) == len(marks) else (good[:0], marks[:0])


def _stamp(path: str) -> int:
    try:
        return file_stamp_number(path)
    except OSError:
        return 0  # which no file has


def _look(reader: BandReader | None, path: Path) -> tuple[str, str]:
    """Why an image cannot be read, or nothing; and its mark."""
    if why := problem(path, reader):
        return why, ""
    if reader is not None:
        return "", name_grey(path) if name_format(path, suffix_of(path.name)) == "DICOM" else ""
    return "", "reduced" if note_loss(path) else ""


def problem(path: Path, reader: BandReader | None = None) -> str:
    """Why an image cannot be read, in a line, or nothing.

    A JPEG is decoded at an eighth of its size: all of its data are read for that, and the faults found are the same.
    """
    found = problem_or_pixels(path, reader, least=1)
    return found if isinstance(found, str) else ""


def problem_or_pixels(path: Path, reader: BandReader | None = None, least: int = 0) -> str | Tensor:
    """Why an image cannot be read, in a line, or its pixels, uint8 ``(3, H, W)``, or raw, as training gets them.

    With ``least``, a JPEG may be decoded smaller; see `decode`.
    """
    try:
        return decode(path, least=least) if reader is None else reader(path)
    except UserError as error:
        cause = error.__cause__
        return why_unread(path, cause if isinstance(cause, Exception) else error)
