"""Folds of images for cross-validation: by class, and by group."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lit_ft.data.files.folders import format_some
from lit_ft.data.loading.protocols import SetT
from lit_ft.data.split import class_counts
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn


def check_folds(folds: int | None, fold: int | None) -> None:
    """Raises `UserError` for a number of folds, or the number of a fold, that cannot be."""
    if folds is not None and folds < 2:
        raise UserError(f"`data.folds`: {folds} is less than 2; give 5, as is usual, or leave it out")
    if fold is not None and folds is None:
        raise UserError(f"`data.fold`: {fold} of how many? Give `data.folds` 5, or leave it out")
    if fold is not None and folds is not None and not 1 <= fold <= folds:
        raise UserError(f"`data.fold`: {fold} is not between 1 and {folds}, the number of `data.folds`")


def take_fold(
    images: SetT, folds: int, fold: int | None, seed: int, class_names: Sequence[str], group_key: str = ""
) -> tuple[SetT, SetT]:
    """The images to train on, and those of a fold, which are held out.

    Args:
        images: The images of all folds.
        folds: Number of folds.
        fold: Which of them is held out, from 1.
        seed: Seed of the folds.
        class_names: Names of the classes.
        group_key: The option that names groups, if the images have groups.

    Raises:
        UserError: If it is not said which fold, or the images are too few for so many.
    """
    if fold is None:
        raise UserError(
            f"`data.fold`: is missing; give which of the {folds} folds is held out, 1 to {folds}, or hold out each in "
            "turn with lit-ft finetune"
        )
    groups: Tensor | None = getattr(images, "groups", None)
    if fault := _find_fault(images.targets, folds, groups, class_names, group_key):
        raise UserError(f"`data.folds`: {fault}")
    (found,) = make_folds(images.targets, folds, 1, seed, groups)
    if groups is not None:
        _check_spread(images.targets, found, folds, class_names, group_key)
    is_held = found == fold - 1
    kept, held = (images.part(which.nonzero().squeeze(1)) for which in (~is_held, is_held))
    if groups is not None and (names := _absent(held.targets, class_names)):
        rank_zero_warn(f"{group_key}: no images of {format_some(names)} in fold {fold}, as too few groups have any")
    return kept, held


def _find_fault(
    targets: Tensor, folds: int, groups: Tensor | None, class_names: Sequence[str], group_key: str
) -> str | None:
    """Why images cannot be divided into so many folds, in each of which others of every class are trained on."""
    has_classes = targets.ndim == 1
    if groups is None:
        counts = class_counts(targets, len(class_names)) if has_classes else [len(targets)]
        least = min(count for count in counts if count)
        if least >= folds:
            return None
        fewer = f"give at most {least}, " if least > 1 else ""
        if not has_classes:
            return f"{folds} needs as many images to train and validate on, and there are {least}; {fewer}add images"
        name = class_names[counts.index(least)]
        return (
            f"{folds} needs as many images of each class, and {name!r} has {least} to train and validate on; {fewer}"
            "add images, or leave the class out"
        )
    num_groups = len(np.unique(groups))
    if num_groups < folds:
        fewer = f"give at most {num_groups}, or " if num_groups > 1 else ""
        return f"{folds} needs as many groups of {group_key}, and there are {num_groups}; {fewer}add groups"
    if has_classes and (rows := _single_homes(targets, groups)).any():
        names = [class_names[label] for label in np.unique(targets[rows]).tolist()]
        return (
            f"all images of {format_some(names)} are in one group of {group_key}, which would be held out whole; add "
            "groups, or leave the class out"
        )
    if (most := usable_folds(targets, folds, groups)) < folds:
        return f"{folds} needs as many images of the largest class; give at most {most}, or add images"
    return None


def _single_homes(targets: Tensor, groups: Tensor) -> Tensor:
    """Which images have a class that is in their group alone ``(N,)``."""
    pairs = np.unique(np.stack([targets.numpy(), groups.numpy()]), axis=1)
    return torch.bincount(torch.from_numpy(pairs[0]), minlength=int(targets.max()) + 1)[targets] == 1


def _check_spread(targets: Tensor, found: Tensor, folds: int, class_names: Sequence[str], group_key: str) -> None:
    """Raises `UserError` where whole groups leave a fold empty, or nothing of a class to train on beside a fold."""
    change = "give another `data.split_seed`, or fewer folds"
    for fold in range(folds):
        is_held = found == fold
        if not is_held.any():
            raise UserError(f"`data.folds`: fold {fold + 1} of {folds} has no group of {group_key}; {change}")
        if targets.ndim == 1 and (lost := set(targets.tolist()) - set(targets[~is_held].tolist())):
            names = format_some([class_names[label] for label in sorted(lost)])
            raise UserError(
                f"`data.folds`: all groups of {group_key} with images of {names} are in fold {fold + 1}; {change}"
            )


def _absent(targets: Tensor, class_names: Sequence[str]) -> list[str]:
    """The classes without an image."""
    counts = class_counts(targets, len(class_names)) if targets.ndim == 1 else []
    return [name for name, count in zip(class_names, counts, strict=False) if not count]


def make_folds(
    targets: Tensor, num_folds: int = 5, repeats: int = 4, seed: int = 0, groups: Tensor | None = None
) -> Tensor:
    """The fold of each image, once for each repetition: ``(R, N)``, int64.

    Classes are spread evenly over the folds, and no group comes in two of them. There are fewer folds where the
    smallest class, or the number of groups, does not suffice for so many, but at least 2. The single image of a class,
    or the group with all images of a class, is in fold -1, which is never held out.

    Args:
        targets: Class of each image ``(N,)``; what has no classes, ``(N, K)``, is split regardless of it.
        num_folds: Number of folds.
        repeats: R, the number of times that the images are split anew.
        seed: Seed of the splits.
        groups: Group of each image ``(N,)``.

    Raises:
        ValueError: If no class has two images, or there are fewer than two groups that can be held out.
    """
    from sklearn import model_selection as sk  # slow to load

    num_folds = usable_folds(targets, num_folds, groups)
    rows = _foldable(targets, groups)
    strata = targets[rows].cpu().numpy() if targets.ndim == 1 else np.zeros(len(rows), np.int64)
    of_groups = None if groups is None else groups[rows].cpu().numpy()
    folds = torch.full((repeats, len(targets)), -1)
    for repeat in range(repeats):
        options = {"n_splits": num_folds, "shuffle": True, "random_state": seed + repeat}
        splitter = sk.StratifiedKFold(**options) if groups is None else sk.StratifiedGroupKFold(**options)
        with warnings.catch_warnings():  # of classes in few groups, for each repetition
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for fold, (_, held) in enumerate(splitter.split(strata, strata, of_groups)):
                folds[repeat, rows[held]] = fold
    return folds


def usable_folds(targets: Tensor, num_folds: int, groups: Tensor | None = None) -> int:
    """The number of folds, or the largest that the images that can be held out allow, by class and by group.

    Raises:
        ValueError: If that is below 2.
    """
    rows = _foldable(targets, groups)
    most = min(num_folds, len(rows) if groups is None else len(np.unique(groups[rows])))
    sizes = [size for size in class_counts(targets[rows], 0) if size] if targets.ndim == 1 else []
    if sizes:  # of groups, folds may lack a class, but scikit-learn wants one image of the largest in each
        most = min(most, min(sizes) if groups is None else max(sizes))
    if most < 2:
        needed = "images of a class at least"
        if groups is not None:
            needed = "groups at least, none of them with all images of a class"
        raise ValueError(f"cross-validation needs two {needed}")
    return most


def held_out(folds: Tensor) -> Tensor:
    """Whether each image is held out in each fold of each repetition: ``(R, N)`` -> ``(R F, N)``.

    >>> held_out(torch.tensor([[0, 1, 1]])).tolist()
    [[True, False, False], [False, True, True]]
    """
    numbers = torch.arange(int(folds.max()) + 1).view(1, -1, 1)
    return (folds.unsqueeze(1) == numbers).flatten(0, 1)


def _foldable(targets: Tensor, groups: Tensor | None) -> Tensor:
    """The images that can be held out, alone or with their group, so that others of their class are trained on."""
    if targets.ndim > 1:
        return torch.arange(len(targets))
    units = torch.arange(len(targets)) if groups is None else groups
    pairs = np.unique(np.stack([targets.cpu().numpy(), units.cpu().numpy()]), axis=1)
    homes = torch.bincount(torch.from_numpy(pairs[0]))  # units with images of each class
    return (~torch.isin(units, units[homes[targets] < 2])).nonzero().squeeze(1)
