"""Decides which images are held out, and which few are kept for training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from lit_ft.errors import UserError


def hold_out(targets: Tensor, rows: Tensor, part: float, seed: int, key: str) -> tuple[Tensor, Tensor]:
    """Splits rows in two, each class in proportion.

    Args:
        targets: Class of every row of the set, ``(N,)``.
        rows: The rows to split.
        part: Fraction of ``rows`` to hold out, or their number.
        seed: Seed of the split.
        key: The option that an error names.

    Returns:
        The rows kept and the rows held out, both in ascending order.

    Raises:
        UserError: A class has too few images to be on both sides.
    """
    classes = targets[rows].numpy()
    try:
        kept, held = train_test_split(rows.numpy(), test_size=part, random_state=seed, stratify=classes)
    except ValueError as error:
        _, sizes = np.unique(classes, return_counts=True)
        raise UserError(
            f"{key}: {part} of {len(rows)} images of {len(sizes)} classes (the smallest has {sizes.min()}) cannot be "
            f"held out with each class in proportion; change it or add images ({error})"
        ) from error
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))


def keep_shots(targets: Tensor, rows: Tensor, shots: int, seed: int, class_names: Sequence[str]) -> Tensor:
    """Keeps ``shots`` rows of each class, chosen so that fewer shots are a subset of more.

    Raises:
        UserError: A class has fewer rows than that.
    """
    kept = []
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(class_names):
        of_class = rows[targets[rows] == label]
        if len(of_class) < shots:
            raise UserError(f"--data.shots: class {name!r} has {len(of_class)} images to train on, {shots} were asked")
        # The whole class is permuted whatever `shots` is: this makes the choices nest.
        kept.append(of_class[torch.randperm(len(of_class), generator=generator)[:shots]])
    return torch.cat(kept).sort().values


def class_counts(targets: Tensor, num_classes: int) -> list[int]:
    """Number of images of each class."""
    return [int(n) for n in torch.bincount(targets, minlength=num_classes)]
