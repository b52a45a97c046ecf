"""Decides which images are held out, and which few are kept for training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from lit_ft.errors import UserError


def hold_out(targets: Tensor, part: float, seed: int, key: str) -> tuple[Tensor, Tensor]:
    """Splits rows in two, each class in proportion.

    Args:
        targets: Class of each row, ``(N,)``.
        part: Fraction of the rows to hold out, or their number.
        seed: Seed of the split.
        key: The option that an error names.

    Returns:
        The rows kept and the rows held out, both in ascending order.

    Raises:
        UserError: A class has too few images to be on both sides.
    """
    classes = targets.numpy()
    try:
        kept, held = train_test_split(np.arange(len(classes)), test_size=part, random_state=seed, stratify=classes)
    except ValueError as error:
        _, sizes = np.unique(classes, return_counts=True)
        raise UserError(
            f"{key}: {part} of {len(classes)} images of {len(sizes)} classes (the smallest has {sizes.min()}) cannot "
            f"be held out with each class in proportion; change it or add images ({error})"
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))


def keep_shots(targets: Tensor, shots: int, seed: int, class_names: Sequence[str]) -> Tensor:
    """Keeps ``shots`` rows of each class, chosen so that fewer shots are a subset of more.

    Args:
        targets: Class of each row, ``(N,)``.
        shots: Rows to keep of each class.
        seed: Seed of the choice.
        class_names: The names of the classes, for the message.

    Returns:
        The rows kept, in ascending order.

    Raises:
        UserError: A class has fewer rows than that.
    """
    for name, count in zip(class_names, class_counts(targets, len(class_names)), strict=True):
        if count < shots:
            raise UserError(f"--data.shots: class {name!r} has {count} images to train on, {shots} were asked")
    return _keep(targets, [shots] * len(class_names), seed)


def keep_fraction(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Keeps a fraction of the rows, of each class in proportion and at least one; less is a subset of more.

    Args:
        targets: Class of each row, ``(N,)``; what has no classes, ``(N, K)``, is kept regardless of it.
        fraction: Share of the rows.
        seed: Seed of the choice.

    Returns:
        The rows kept, in ascending order.
    """
    strata = targets if targets.ndim == 1 else torch.zeros(len(targets), dtype=torch.long)
    sizes = torch.bincount(strata).tolist()
    return _keep(strata, [max(1, round(fraction * size)) for size in sizes], seed)


def _keep(targets: Tensor, quotas: Sequence[int], seed: int) -> Tensor:
    kept = []
    generator = torch.Generator().manual_seed(seed)
    for label, quota in enumerate(quotas):
        of_class = (targets == label).nonzero().squeeze(1)
        # The whole class is permuted whatever is kept of it: this makes the choices nest.
        kept.append(of_class[torch.randperm(len(of_class), generator=generator)[:quota]])
    return torch.cat(kept).sort().values


def class_counts(targets: Tensor, num_classes: int) -> list[int]:
    """Number of images of each class; for ``(N, K)`` of zeros and ones, of those that have it."""
    if targets.ndim == 2:
        return [int(n) for n in targets.sum(dim=0)]
    return [int(n) for n in torch.bincount(targets, minlength=num_classes)]
