"""Splits that are not given, held out from the training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lit_ft.data.files.folders import format_some
from lit_ft.data.folds import check_folds, take_fold
from lit_ft.data.loading.protocols import SetT, Split
from lit_ft.data.modules.options import check_fraction
from lit_ft.data.split import class_counts, hold_out
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn

TEST_ADVICE = "to hold some out: `data.test_fraction`"
"""How to get test images, where there are none."""


@dataclass(frozen=True)
class HeldOutFractions:
    """How much of the images is held out for each split that is not given.

    Args:
        val: Fraction for validation.
        test: Fraction for test; 0 holds none out.
        folds: Number of the folds into which images are divided, and not by ``val``.
        fold: Which of these is held out, from 1.

    Raises:
        UserError: They are out of range, or leave nothing to train on.
    """

    val: float
    test: float
    folds: int | None = None
    fold: int | None = None

    def __post_init__(self) -> None:
        check_fraction("val_fraction", self.val)
        check_fraction("test_fraction", self.test, zero=True)
        if self.val + self.test >= 1:
            given = f"{self.test} and `data.val_fraction` {self.val}"
            raise UserError(f"`data.test_fraction`: {given} leave nothing to train on")
        check_folds(self.folds, self.fold)

    def pool(self, given: Mapping[Split, SetT]) -> dict[Split, SetT]:
        """The splits that are given; where there are folds, the images to validate on are among those to train on."""
        splits = dict(given)
        if self.folds is not None and "val" in splits:
            splits["train"] = cast(Any, splits["train"]).join(splits.pop("val"))
        return splits

    def apply(
        self, given: Mapping[Split, SetT], seed: int, class_names: Sequence[str], group_key: str = ""
    ) -> dict[Split, SetT]:
        """The splits with those that are missing; ``group_key`` is the option for groups, where images have any."""
        splits = self.pool(given)
        total = len(splits["train"])  # both fractions are of all images, whichever is held out first
        num_val = 0 if self.folds is not None else max(1, round(self.val * total))
        counts: dict[Split, int] = {"test": round(self.test * total), "val": num_val}
        for split, count in counts.items():
            if count and split not in splits:
                splits["train"], splits[split] = _hold_out_split(
                    splits["train"], split, count, seed, class_names, group_key
                )
        if self.folds is not None:
            splits["train"], splits["val"] = take_fold(
                splits["train"], self.folds, self.fold, seed, class_names, group_key
            )
        return splits


def _hold_out_split(
    train: SetT, split: Split, count: int, seed: int, class_names: Sequence[str], group_key: str
) -> tuple[SetT, SetT]:
    """The training images kept, and those held out; raises `UserError` where a class cannot be in both."""
    key = f"`data.{split}_fraction`"
    has_classes, groups = train.targets.ndim == 1, getattr(train, "groups", None)
    if has_classes and groups is None:
        counts = class_counts(train.targets, len(class_names))
        if single := [name for name, n in zip(class_names, counts, strict=True) if n == 1]:
            these = f"the class {single[0]!r} has" if len(single) == 1 else f"the classes {format_some(single)} have"
            needed = f"and two are needed, one to train on and one for {split}"
            raise UserError(f"{key}: {these} one image, {needed}; add images, or leave the class out")
    kept, held = hold_out(train.targets, count, seed, key, groups)
    if has_classes and groups is not None:
        counts = class_counts(train.targets[held], len(class_names))
        if names := ", ".join(name for name, n in zip(class_names, counts, strict=True) if not n):
            rank_zero_warn(f"{group_key}: no images of {names} in {split}, as too few groups have any")
    return train.part(kept), train.part(held)


def check_groups(splits: Mapping[Split, Any], group_names: Sequence[str], key: str) -> None:
    """Raises `UserError` for a group that has images in two of the given splits; ``key`` is the option for groups."""
    home: dict[int, str] = {}
    for split, images in splits.items():
        for number in set(images.groups.tolist()) if images.groups is not None else ():
            if home.setdefault(number, split) != split:
                raise UserError(
                    f"{key}: group {group_names[number]!r} is both in {home[number]} and in {split}; move all its "
                    "images into one of them"
                )
