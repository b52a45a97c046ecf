"""Classes of a data module: their names, the numbers of their images, and the weights that follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, cast

import torch
from torch import Tensor

from lit_ft.errors import UserError
from lit_ft.tasks.monitored import MAIN_METRIC


def name_classes(classes: int | Sequence[str]) -> list[str]:
    """The names of classes, which are numbers where there is none.

    >>> name_classes(3)
    ['0', '1', '2']
    """
    return [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)


def read_classes(data: Any) -> int | list[str] | None:
    """The names of a data module's classes, or else their number, or None where it has neither, or not yet."""
    names = getattr(data, "class_names", None)
    if names is not None and len(names):
        return [str(name) for name in cast(Iterable[Any], names)]
    number = getattr(data, "num_classes", None)
    try:
        return None if number is None else index(number)
    except TypeError as error:
        raise UserError(f"{type(data).__name__}.num_classes: expected a whole number, got {number!r}") from error


def settle_classes(data: Any, task: str, own: list[str]) -> list[str]:
    """The names of the classes of a model: its ``own``, if it has any, or else the data's.

    Raises:
        UserError: If there are none, the data's are others, or its targets are for another task.
    """
    kind = getattr(data, "task", None)
    if kind in MAIN_METRIC and kind != task:  # which would take something else for classes
        raise UserError(
            f"`model.task`: {task}, but the targets of {type(data).__name__} are for {kind}; give `model.task` {kind}, "
            "or other data"
        )
    given = read_classes(data)
    if given is None and not own:
        for name in ("class_names", "num_classes"):  # a property may tell what keeps it from giving them
            if isinstance(getattr(type(data), name, None), property):
                getattr(data, name)
        raise UserError("classes: the data module names no classes; give FineTuneModule(classes=...)")
    names = own if given is None else name_classes(given)
    if own and (len(names) != len(own) or (not isinstance(given, int) and names != own)):
        raise UserError(
            f"the model has {len(own)} classes ({first_names(own)}), but the data has {len(names)} classes "
            f"({first_names(names)}); give the data the model was trained on, or start from the backbone alone with "
            "`model.weights` CHECKPOINT"
        )
    return own or names


def read_training_numbers(data: Any, method: str, what: str, option: str, without: str) -> Any:
    """What ``counts()`` or ``sizes()`` of a data module gives for its training images, or else `UserError`.

    That says which ``option`` of the model needs ``what``, and the setting that is ``without``.
    """
    ask = getattr(data, method, None)
    found = ask().get("train") if ask is not None else None
    if found is None:
        raise UserError(
            f"`model.{option}`: the data module has no {method}() of {what}; add that method to it, or set {without}"
        )
    return found


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
    option = "class_weight", "class_weight to null"
    known = read_training_numbers(data, "counts", "the training images of each class", *option)
    counts = torch.tensor(known, dtype=torch.float64)
    _refuse("no training image of", counts == 0, class_names)
    if task == "multiclass":
        return counts.reciprocal().mul(counts.sum() / len(counts)).float()
    num_train = read_training_numbers(data, "sizes", "the number of images of each split", *option)
    _refuse("every training image has", counts == num_train, class_names)
    return counts.reciprocal().mul(num_train - counts).float()


def _refuse(what: str, which: Tensor, class_names: list[str]) -> None:
    if which.any():
        names = _select(class_names, which)
        raise UserError(
            f"`model.class_weight`: {what} {first_names(names)}; leave such classes out, or set class_weight to null"
        )


def _select(names: Sequence[str], which: Tensor) -> list[str]:
    return [name for name, is_so in zip(names, which.tolist(), strict=True) if is_so]


def first_names(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
