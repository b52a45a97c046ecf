"""Class weights of the training loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lit_ft.errors import UserError, unknown

ClassWeight = Literal["balanced"]


def check_class_weight(given: str | None, task: str) -> None:
    """Raises `UserError` for weights that are unknown or do not fit the task."""
    if given not in (None, "balanced"):
        raise unknown("weight", given, ["balanced"], "`model.class_weight`")
    if given is not None and task == "regression":
        raise UserError("`model.class_weight`: is for `model.task` multiclass or multilabel, not regression")


def balanced_weights(task: str, data: Any, class_names: list[str]) -> Tensor:
    """The weights that let all classes count alike, from the numbers of the training images.

    For ``multiclass`` it is ``n / (K n_k)``, with which each class has the same total and the mean over all images is 1
    (King and Zeng 2001, Logistic Regression in Rare Events Data; as scikit-learn's ``balanced``). For ``multilabel`` it
    is ``(n - n_k) / n_k``, with which the images that have a label weigh as much as those that have not.

    Args:
        task: Name of the task.
        data: The data module. Its ``counts()["train"]`` has the number n_k of training images of each class, in all
            processes together, and for ``multilabel`` its ``sizes()["train"]`` is their number n.
        class_names: The names of the K classes.

    Returns:
        float32 ``(K,)``.

    Raises:
        UserError: If the numbers are not known, a class has no image, or the images are drawn to balance the classes.
    """
    if getattr(data, "sampling", None) == "balanced":
        raise UserError("`model.class_weight`: `data.sampling` balanced already lets all classes count alike; drop one")
    known = data.counts().get("train") if hasattr(data, "counts") else None
    if known is None:
        raise UserError(
            "`model.class_weight`: the data module has no counts() of the training images of each class; add that "
            "method to it, or set class_weight to null"
        )
    counts = torch.tensor(known, dtype=torch.float64)
    _refuse("no training image of", counts == 0, class_names)
    if task == "multiclass":
        return counts.reciprocal().mul(counts.sum() / len(counts)).float()
    if not hasattr(data, "sizes"):
        raise UserError(
            "`model.class_weight`: the data module has no sizes() of the number of images of each split; add that "
            "method to it, or set class_weight to null"
        )
    num_train = data.sizes()["train"]
    _refuse("every training image has", counts == num_train, class_names)
    return counts.reciprocal().mul(num_train - counts).float()


def _refuse(what: str, which: Tensor, class_names: list[str]) -> None:
    names = [name for name, is_so in zip(class_names, which.tolist(), strict=True) if is_so]
    if names:
        shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise UserError(f"`model.class_weight`: {what} {shown}; leave such classes out, or set class_weight to null")
