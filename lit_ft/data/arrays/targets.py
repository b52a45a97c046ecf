"""Labels in arrays as targets: class numbers or names, one-hot rows, several labels an image, and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_ft.data.files.folders import format_some
from lit_ft.data.loading.protocols import Split
from lit_ft.data.tables.labels import check_names, class_order
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.tasks.task import TaskName

Values = NDArray[Any]


@dataclass(frozen=True)
class LabelArray:
    """The labels of the images of one split.

    Args:
        values: Classes ``(N,)`` or ``(N, 1)``, as numbers or names, or one-hot ``(N, K)``; labels ``(N, K)`` of 0 and
            1; or numbers ``(N,)`` or ``(N, K)``.
        what: What they are called in a message.
        key: The option that they come from.
    """

    values: Values
    what: str
    key: str

    def classes(self) -> Values:
        """The class of each image ``(N,)``, as int64 or text; raises `UserError` where there is not one each."""
        values = self.values
        values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim == 2 and values.dtype.kind in "biuf":
            if not (((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all()):
                raise self.refusal(f"has {values.shape[1]} labels an image; for these: `model.task` multilabel")
            values = values.argmax(axis=1)
        if values.ndim != 1:
            raise self.refusal(f"is of shape {values.shape}; labels are (N,)")
        if values.dtype.kind in "US":
            return self._texts(values)
        if values.dtype.kind == "f":
            self._refuse_not_finite(values)
            if (values != np.trunc(values)).any():
                raise self.refusal("has fractions; for numbers instead of classes: `model.task` regression")
        if values.dtype.kind in "uf" and values.max() >= 2**63:
            raise self.refusal(f"has the label {values.max():g}, which is too large; number the classes from 0")
        return values.astype(np.int64)

    def marks(self) -> Tensor:
        """The labels of each image, int64 ``(N, K)`` of 0 and 1; raises `UserError` where they are something else."""
        values = self.values
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise self.refusal(f"is {values.dtype} {values.shape}; multilabel takes (N, K) of 0 and 1")
        if strange := np.unique(values[(values != 0) & (values != 1)])[:3].tolist():
            raise self.refusal(f"has {', '.join(map(str, strange))}; multilabel takes 0 and 1")
        return torch.from_numpy(values.astype(np.int64))

    def numbers(self) -> Tensor:
        """The numbers of each image, float64 ``(N, K)``; raises `UserError` where they are something else."""
        values = self.values[:, None] if self.values.ndim == 1 else self.values
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise self.refusal(f"is {values.dtype} {values.shape}; regression takes numbers (N,) or (N, K)")
        self._refuse_not_finite(values)
        numbers = values.astype(np.float64)
        # float64 keeps their digits; but errors are also kept as float32, as by TensorBoard.
        if np.abs(numbers).max() > np.finfo(np.float32).max:
            raise self.refusal("has a number beyond 3.4e38; scale it")
        return torch.from_numpy(numbers)

    def refusal(self, fault: str) -> UserError:
        """The error for a fault of them."""
        return UserError(f"{self.key}: {self.what} {fault}")

    def _texts(self, values: Values) -> Values:
        try:
            texts = np.char.strip(np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values)
        except UnicodeDecodeError as error:
            raise self.refusal("has text that is not in UTF-8") from error
        if (texts == "").any():
            raise self.refusal(f"has no label for image {int((texts == '').argmax())}")
        return texts

    def _refuse_not_finite(self, values: Values) -> None:
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            raise self.refusal(f"has no number for {(~finite).sum():,} images, first {int((~finite).argmax())}")


@dataclass(frozen=True)
class Labels:
    """The labels of the images of all splits.

    Args:
        arrays: Those of each split, ``train`` among them.
        names: The names of the classes by their number, or of the labels or numbers, if they are known.
        names_key: The option or the place that these come from.
    """

    arrays: Mapping[Split, LabelArray]
    names: Sequence[str] | None = None
    names_key: str = "`data.classes`"

    def with_fitting_names(self, task: TaskName) -> Labels:
        """The same labels, without names that are not for all of them."""
        values = [array.values for array in self.arrays.values()]
        num = len(self.names or ())
        if task == "multiclass" and all(one.dtype.kind in "SU" for one in values):
            fits = all(set(array.classes().tolist()) <= set(self.names or ()) for array in self.arrays.values())
        elif task == "multiclass":
            classes = [array.classes() for array in self.arrays.values()]
            fits = all(0 <= one.min() <= one.max() < num for one in classes)
        else:
            fits = task == "multilabel" and all(one.ndim == 2 and one.shape[1] == num for one in values)
        return self if fits else replace(self, names=None)

    def to_targets(self, task: TaskName) -> tuple[list[str], dict[Split, Tensor]]:
        """The names of the classes, labels or numbers, and the targets by split.

        These are int64 ``(N,)`` for multiclass, int64 ``(N, K)`` of zeros and ones for multilabel, and float64
        ``(N, K)`` for regression. Classes are those of the training images.

        Raises:
            UserError: The labels are not of the task, or not of the classes.
        """
        if self.names is not None:
            _check_given(self.names, self.names_key)
        if task == "multiclass":
            return self._to_classes()
        is_numbers = task == "regression"
        targets = {split: array.numbers() if is_numbers else array.marks() for split, array in self.arrays.items()}
        num, train = targets["train"].shape[1], self.arrays["train"]
        for split, rows in targets.items():
            if rows.shape[1] != num:
                raise self.arrays[split].refusal(f"has {rows.shape[1]} columns, and {train.what} has {num}")
        if self.names is not None and len(self.names) != num:
            raise UserError(f"{self.names_key}: {len(self.names)} names, for {num} columns of {train.what}")
        unnamed = ["target"] if num == 1 and is_numbers else [str(k) for k in range(num)]
        return list(self.names or unnamed), targets

    def _to_classes(self) -> tuple[list[str], dict[Split, Tensor]]:
        values = {split: array.classes() for split, array in self.arrays.items()}
        are_texts = {one.dtype.kind == "U" for one in values.values()}
        train = self.arrays["train"]
        if len(are_texts) > 1:
            raise train.refusal("and those of other splits are not alike: some are text, others numbers")
        known: list[Any] = np.unique(values["train"]).tolist()
        if True in are_texts:
            names = order = self._order_texts(known)
        else:
            order, names = known, [str(label) for label in known] if self.names is None else self._name(values)
        if len(known) < 2:
            raise train.refusal(f"has one class only, {names[0]!r}; two are needed")
        if known[0] == -1 and len(known) > 2:  # of two, the other one is often 1
            num = int((values["train"] == -1).sum())
            rank_zero_warn(
                f"{train.key}: {train.what} has the label -1 for {num:,} images, which is a class here; where it "
                "stands for unlabelled ones, as in STL10, leave them out"
            )
        check_names(names, train.key if self.names is None else self.names_key)
        return names, {split: self._find(split, values[split], np.array(order)) for split in values}

    def _order_texts(self, known: list[str]) -> list[str]:
        if self.names is None:
            return class_order(known)
        if strange := [name for name in known if name not in self.names]:
            what = self.arrays["train"].what
            raise UserError(f"{self.names_key}: labels in {what} are not among the names: {_list(strange)}")
        return self._used(known)

    def _name(self, values: Mapping[Split, Values]) -> list[str]:
        """The names of the numbers that training images have; there must be one for each."""
        names = self.names or ()
        for split, numbers in values.items():
            low, high = int(numbers.min()), int(numbers.max())
            if low < 0 or high >= len(names):
                raise UserError(
                    f"{self.names_key}: {len(names)} names, but the labels in {self.arrays[split].what} go from {low} "
                    f"to {high}; give one for each number from 0"
                )
        return self._used([names[number] for number in np.unique(values["train"])])

    def _used(self, used: Sequence[str]) -> list[str]:
        """The names that are used, in their order, with a warning of others."""
        taken, names = set(used), self.names or ()
        if unused := [name for name in names if name not in taken]:
            rank_zero_warn(f"{self.names_key}: no training images of {_list(unused)}, so these are no classes")
        return [name for name in names if name in taken]

    def _find(self, split: Split, values: Values, order: Values) -> Tensor:
        """The place of each label in the order of the classes; raises `UserError` for one that has none."""
        sorter = np.argsort(order)
        places = np.searchsorted(order, values, sorter=sorter).clip(max=len(order) - 1)
        found = sorter[places]
        if (strange := order[found] != values).any():
            labels = _list([str(label) for label in np.unique(values[strange]).tolist()])
            what = f"has {int(strange.sum()):,} labels that no training image has, {labels}; leave them out"
            raise self.arrays[split].refusal(what)
        return torch.from_numpy(found.astype(np.int64))


def _check_given(names: Sequence[str], key: str) -> None:
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{key}: {name!r} is no name of a class; give text")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"{key}: {twice!r} is there twice; tell the classes apart")


def _list(labels: Sequence[str]) -> str:
    return format_some([repr(label) for label in labels])
