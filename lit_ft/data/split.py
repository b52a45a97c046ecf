"""Held-out splits, stratified by class or by group, and choices of few images to train on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn


def hold_out(targets: Tensor, part: float, seed: int, key: str, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Splits rows in two, each class in proportion.

    Args:
        targets: Class of each row, ``(N,)``; what has no classes, ``(N, K)``, is split regardless of it.
        part: Fraction of the rows to hold out, or their number.
        seed: Seed of the split.
        key: The option that an error names.
        groups: Group of each row, int64 ``(N,)``, from 0. No group comes on both sides; shares and number are then as
            near to those asked for as whole groups allow.

    Returns:
        The rows kept and the rows held out, both ascending.

    Raises:
        UserError: A class has too few images to be on both sides, or there are too few groups.
    """
    classes = targets.numpy() if targets.ndim == 1 else np.zeros(len(targets), np.int64)
    if groups is not None:
        is_held = np.isin(groups.numpy(), _take_groups(classes, groups.numpy(), part, seed, key))
        return torch.from_numpy((~is_held).nonzero()[0]), torch.from_numpy(is_held.nonzero()[0])
    from sklearn.model_selection import train_test_split  # slow to load, and for many data there is nothing to split

    try:
        kept, held = train_test_split(
            np.arange(len(classes)), test_size=part, random_state=seed, stratify=classes if targets.ndim == 1 else None
        )
    except ValueError as error:
        _, sizes = np.unique(classes, return_counts=True)
        raise UserError(
            f"{key}: {part} of {len(classes)} images of {len(sizes)} classes (the smallest has {sizes.min()}) cannot "
            f"be held out with each class in proportion; change it or add images ({error})"
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))


def _take_groups(
    classes: NDArray[np.int64], groups: NDArray[np.int64], part: float, seed: int, key: str
) -> NDArray[np.int64]:
    """Chooses groups that hold a share of each class, as nearly as it can.

    Of several random orders the best counts. (scikit-learn's StratifiedGroupKFold has folds of equal size alone, and
    takes a time that grows with groups x classes.)
    """
    share = part if part < 1 else part / len(classes)
    names, rows = np.unique(groups, return_inverse=True)
    totals = np.bincount(classes)
    cells, sizes = np.unique(rows * len(totals) + classes, return_counts=True)
    members: list[list[tuple[int, int]]] = [[] for _ in names]  # classes of each group, and how many images
    for cell, size in zip(cells.tolist(), sizes.tolist(), strict=True):
        members[cell // len(totals)].append((cell % len(totals), size))
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(names)).tolist() for _ in range(max(1, min(20, 200_000 // len(names))))]
    found = (_fill(members, totals.tolist(), share, order) for order in orders)
    _, best = min((filled for filled in found if filled[1]), default=(0.0, []))
    if not best:  # every group is larger than what is wanted: the nearest that leaves some of each class
        left = [g for g in orders[0] if all(size < totals[label] for label, size in members[g])]
        best = sorted(left, key=[sum(size for _, size in cells) for cells in members].__getitem__)[:1]
    if not best:
        raise UserError(
            f"{key}: {part} of {len(classes)} images in {len(names)} group(s) cannot be held out so that images of "
            "each class are left to train on; add groups"
        )
    return names[best]


def _fill(
    members: list[list[tuple[int, int]]], totals: list[int], share: float, order: list[int]
) -> tuple[float, list[int]]:
    """Goes through groups in an order, and takes or gives back each by which the shares come nearer; and so again.

    Returns how far the shares of classes then are from what was wanted, and the groups taken.
    """
    wanted = [share * total for total in totals]
    held = [0] * len(totals)
    taken: set[int] = set()
    for _ in range(10):  # passes at most
        before = taken.copy()
        for group in order:
            sign = -1 if group in taken else 1
            change = 0.0
            for label, size in members[group]:
                if held[label] + sign * size == totals[label]:  # nothing of this class would be left
                    break
                change += size * (size + 2 * sign * (held[label] - wanted[label])) / totals[label]
            else:
                if change < 0:
                    taken ^= {group}
                    for label, size in members[group]:
                        held[label] += sign * size
        if taken == before:
            break
    return sum((h - w) ** 2 / t for h, w, t in zip(held, wanted, totals, strict=True) if t), sorted(taken)


def keep_shots(targets: Tensor, shots: int, seed: int, class_names: Sequence[str]) -> Tensor:
    """Rows with ``shots`` of each class, ascending, fewer a subset of more; raises `UserError` if a class has less."""
    for name, count in zip(class_names, class_counts(targets, len(class_names)), strict=True):
        if count < shots:
            raise UserError(f"`data.shots`: class {name!r} has {count} images to train on, {shots} were asked")
    return _keep(targets, [shots] * len(class_names), seed)


def keep_fraction(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Rows with a fraction of each class and at least one, ascending; a smaller fraction is a subset of a larger one.

    Of what has no classes, ``(N, K)``, a fraction of all is kept.
    """
    strata = targets if targets.ndim == 1 else torch.zeros(len(targets), dtype=torch.long)
    sizes = torch.bincount(strata).tolist()
    return _keep(strata, [max(1, round(fraction * size)) for size in sizes], seed)


def _keep(targets: Tensor, quotas: Sequence[int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # The whole class is permuted whatever is kept of it: this makes the choices nest.
    shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in rows_by_class(targets, len(quotas))]
    return torch.cat([rows[:quota] for rows, quota in zip(shuffled, quotas, strict=True)]).sort().values


def rows_by_class(targets: Tensor, num_classes: int) -> list[Tensor]:
    """The rows of each class, int64 and in ascending order.

    They are sorted once, as to look for each class in turn takes a time that grows with images x classes.

    >>> rows_by_class(torch.tensor([1, 0, 1]), 3)
    [tensor([1]), tensor([0, 2]), tensor([], dtype=torch.int64)]
    """
    sizes = torch.bincount(targets, minlength=num_classes).tolist()
    return list(torch.split(targets.argsort(stable=True), sizes))


def class_counts(targets: Tensor, num_classes: int) -> list[int]:
    """Number of images of each class; for ``(N, K)``, of those that have each label, or each number."""
    if targets.is_floating_point():  # every image has all of them
        return [len(targets)] * num_classes
    counts = targets.sum(dim=0) if targets.ndim == 2 else torch.bincount(targets, minlength=num_classes)
    return [int(n) for n in counts]


def warn_without_test(advice: str) -> None:
    """Warns that validation images are tested on."""
    rank_zero_warn(f"there are no test images, the validation images are tested on; {advice}")
