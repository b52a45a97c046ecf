"""The images of a probe: those of train and val together, their targets, groups and copies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lit_ft.data.checks.check_data import find_copies, list_samples
from lit_ft.data.checks.findings import Sample
from lit_ft.data.files.derived_cache import hash_tensors, load_or_derive, match_layout
from lit_ft.data.files.file_split import FileSplit, PhotoFiles
from lit_ft.data.folds import make_folds, usable_folds
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.arrays import ArrayDataModule
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.pages import thumbnail
from lit_ft.errors import UserError
from lit_ft.probes.heads.solver import LOSSES, Targets, weigh_classes
from lit_ft.tasks.classes import balanced_weights
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import ClassWeight

FOLDS = 5

_REPEATS = 4
_LARGE = 20_000
"""Folds are repeated `_REPEATS` times, or in all of so many images, as the scores of large sets vary less."""


@dataclass(frozen=True)
class ProbeImages:
    """N labelled images, those of train before those of val; test images are never probed.

    Args:
        data: The data module, set up.
        splits: Train and val.
        samples: Path, split and label of each image.
        targets: What heads are to predict; numbers are standardised.
        groups: Group of each image ``(N,)``, where groups are known.
        copies: The first image that each one is a copy of ``(N,)``; its own row, where it is none.
        weights: What each image counts in a fit ``(N,)``; None where all count alike.
    """

    data: ImageDataModule[Any]
    splits: Mapping[Split, Any]
    samples: list[Sample]
    targets: Targets
    groups: Tensor | None
    copies: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def thumbnail(self, row: int) -> str:
        """A small JPEG of an image in base 64; empty where it cannot be read."""
        for split in self.splits.values():
            if row < len(split):
                break
            row -= len(split)
        if isinstance(split, FileSplit):
            return thumbnail(split.paths.full(row))
        return cast(str, split.thumbnail(row))

    def part(self, rows: Tensor) -> Any:
        """The split of some images ``(n,)``, whose rows ascend."""
        train, val = self.splits.values()
        is_train = rows < len(train)
        return train.part(rows[is_train]).join(val.part(rows[~is_train] - len(train)))

    @property
    def is_first(self) -> Tensor:
        """Which images are no copies of one before them ``(N,)``."""
        return self.copies == torch.arange(len(self))

    @property
    def firsts(self) -> Tensor:
        """The rows of these, ascending."""
        return self.is_first.nonzero().squeeze(1)

    @property
    def num_copies(self) -> int:
        """Number of images that are copies of another one."""
        return len(self) - len(self.firsts)

    @property
    def repeats(self) -> int:
        """How often the images are split into folds."""
        return max(1, min(_REPEATS, _LARGE // len(self)))

    def num_folds(self) -> int:
        """Number of folds that the images allow, at most `FOLDS`.

        Raises:
            UserError: If there are too few images for two.
        """
        try:
            if self.groups is None:
                return usable_folds(self.targets.values[self.firsts], FOLDS)
            return usable_folds(self.targets.values, FOLDS, join_copies(self.groups, self.copies))
        except ValueError as error:
            raise UserError(f"`data`: {error}, without copies, in train and val; add images") from error

    def fold(self, seed: int = 0) -> Tensor:
        """The fold of each image, once for each repetition ``(R, N)``; copies and groups are each in one fold."""
        num_folds = self.num_folds()
        if self.groups is not None:
            return make_folds(self.targets.values, num_folds, self.repeats, seed, join_copies(self.groups, self.copies))
        folds = make_folds(self.targets.values[self.firsts], num_folds, self.repeats, seed)
        return folds[:, torch.searchsorted(self.firsts, self.copies)]

    def classes_in_few_groups(self, num_folds: int) -> list[str]:
        """The classes with images in fewer groups than folds."""
        if self.groups is None or self.targets.loss != "softmax":
            return []
        pairs = torch.stack([self.targets.values, join_copies(self.groups, self.copies)], dim=1).tolist()
        counts = Counter(label for label, _ in {(label, group) for label, group in pairs})
        return [name for label, name in enumerate(self.data.class_names) if 0 < counts[label] < num_folds]


def read_images(data: Any, class_weight: ClassWeight | None = None) -> ProbeImages:
    """Sets a data module up, and finds the copies among its images of train and val.

    Args:
        data: The data module.
        class_weight: Whether rare classes count more, as in training.

    Raises:
        UserError: If it is of another kind, or its images cannot be read.
    """
    if not isinstance(data, PhotoDataModule | ArrayDataModule):
        raise UserError(f"`data`: lit-ft probe takes photos in files and sets in memory, not {type(data).__name__}")
    data.setup()
    splits: dict[Split, Any] = {"train": data.splits["train"], "val": data.splits["val"]}
    targets = read_targets(data, torch.cat([split.targets for split in splits.values()]))
    weighted = class_weight is not None and data.task != "regression"
    each = balanced_weights(data.task, data, data.class_names) if weighted else None
    targets, weights = weigh_classes(targets, each, data.sampling == "balanced")
    groups = [split.groups for split in splits.values() if getattr(split, "groups", None) is not None]
    return ProbeImages(
        data,
        splits,
        list_samples(data, splits),
        targets,
        torch.cat(groups) if len(groups) == len(splits) else None,
        _first_copies(data, splits),
        weights,
    )


def read_targets(data: ImageDataModule[Any], targets: Tensor) -> Targets:
    """What heads are to predict, by the targets of a data module; numbers are standardised."""
    if data.task == "regression":
        targets = Standardisation.of(targets).standardise(targets)
    return Targets(LOSSES[data.task], targets, data.num_classes)


def _first_copies(data: ImageDataModule[Any], splits: Mapping[Split, Any]) -> Tensor:
    """The first image that each is a copy of ``(N,)``; of files they are kept between runs."""
    total = sum(map(len, splits.values()))

    def find() -> Tensor:
        first = torch.arange(total)
        for group in find_copies(data, splits):
            first[group.rows] = group.rows[0]
        return first

    if not all(isinstance(split, FileSplit) for split in splits.values()):
        return find()
    stamps = [hash_tensors([torch.from_numpy(PhotoFiles.of(split.paths).keys)]) for split in splits.values()]
    layout: dict[str, tuple[torch.dtype, int]] = {"first": (torch.int64, 1)}
    found, _ = load_or_derive(
        "copies",
        json.dumps(stamps),
        lambda made: match_layout(made[0], layout) and len(made[0]["first"]) == total,
        lambda: ({"first": find()}, {}),
    )
    return found["first"]


def join_copies(groups: Tensor, copies: Tensor) -> Tensor:
    """Groups ``(N,)`` that also keep copies together: what shares a group or a copy has one number.

    >>> join_copies(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 3]))
    tensor([0, 0, 0, 1])
    """
    num, rows = len(groups), np.arange(len(groups))
    links = np.concatenate([num + groups.numpy(), copies.numpy()])
    size = num + int(groups.max()) + 1
    linked = coo_matrix((np.ones(2 * num, bool), (np.tile(rows, 2), links)), (size, size))
    joined = connected_components(linked, directed=False)[1][:num]
    return torch.from_numpy(np.unique(joined, return_inverse=True)[1]).long()
