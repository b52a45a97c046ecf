"""Splits of image files that are held out from the training images, because none are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_warn

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.folders import format_some
from lit_ft.data.loading.protocols import Split
from lit_ft.data.split import class_counts, hold_out
from lit_ft.errors import UserError


@dataclass(frozen=True)
class HoldOut:
    """Which splits to hold out.

    Args:
        val_fraction: Fraction of the images for validation.
        test_fraction: Fraction of the images for test; 0 for none.
        seed: Seed of the splits.
        class_names: The names of the classes.
        group_key: The option that names groups, for messages.
    """

    val_fraction: float
    test_fraction: float
    seed: int
    class_names: Sequence[str]
    group_key: str

    def __call__(self, given: Mapping[Split, FileSplit]) -> dict[Split, FileSplit]:
        """The given splits, and those that are missing, held out from the training images."""
        splits = dict(given)
        total = len(splits["train"])  # both fractions are of all images, whichever is held out first
        counts: dict[Split, int] = {
            "test": round(self.test_fraction * total),
            "val": max(1, round(self.val_fraction * total)),
        }
        for split, count in counts.items():
            if count and split not in splits:
                splits["train"], splits[split] = self._hold_out(splits["train"], split, count)
        return splits

    def _hold_out(self, train: FileSplit, split: Split, count: int) -> tuple[FileSplit, FileSplit]:
        key = f"`data.{split}_fraction`"
        self._refuse_single(train, split, key)
        kept, held = hold_out(train.targets, count, self.seed, key, train.groups)
        if train.groups is not None and train.targets.ndim == 1:
            counts = class_counts(train.targets[held], len(self.class_names))
            if without := [name for name, n in zip(self.class_names, counts, strict=True) if not n]:
                names = ", ".join(without)
                rank_zero_warn(f"{self.group_key}: no images of {names} in {split}, as too few groups have any")
        return train.part(kept), train.part(held)

    def _refuse_single(self, train: FileSplit, split: Split, key: str) -> None:
        """Refuses a class that cannot be both trained on and held out."""
        if train.groups is not None or train.targets.ndim > 1:
            return
        counts = class_counts(train.targets, len(self.class_names))
        if single := [name for name, count in zip(self.class_names, counts, strict=True) if count == 1]:
            these = f"the class {single[0]!r} has" if len(single) == 1 else f"the classes {format_some(single)} have"
            raise UserError(
                f"{key}: {these} one image, and two are needed, one to train on and one for {split}; add images, or "
                "leave the class out"
            )


def check_groups(splits: Mapping[Split, FileSplit], group_names: Sequence[str], key: str) -> None:
    """Raises `UserError` for a group that has images in two of the given splits; ``key`` is the option for groups."""
    home: dict[int, str] = {}
    for split, images in splits.items():
        for number in set(images.groups.tolist()) if images.groups is not None else ():
            if home.setdefault(number, split) != split:
                raise UserError(
                    f"{key}: group {group_names[number]!r} is both in {home[number]} and in {split}; move all its "
                    "images into one of them"
                )
