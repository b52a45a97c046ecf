"""Tables of predictions as they were written, read back: what is true and what was predicted, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from lit_ft.evaluation.run_files import Cells
from lit_ft.tasks.task import TaskName

Numbers = NDArray[np.float64]

_CLASSIFIED = ("path", "class", "predicted", "probability", "loss")
"""The columns of predictions of one class an image; a label or number may have one of these names, but not all."""


@dataclass(frozen=True)
class PredictedImages:
    """The N images of a table of predictions.

    Args:
        task: What was predicted.
        paths: The path of each image, or its index.
        true: The class of each image ``(N,)`` as its row in ``names``, or the labels or numbers ``(N, K)``.
        predicted: What was predicted, likewise; for labels the probabilities.
        probability: The probability of the predicted class ``(N,)``; else empty.
        losses: The loss of each image ``(N,)``.
        names: The names of classes, labels or numbers.
    """

    task: TaskName
    paths: Sequence[str]
    true: Numbers
    predicted: Numbers
    probability: Numbers
    losses: Numbers
    names: Sequence[str]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the class, or each label, of an image was recognised ``(N,)``; for numbers whether none is off."""
        true, predicted = (of > 0.5 for of in self._both) if self.task == "multilabel" else self._both
        same = np.equal(true, predicted).reshape(len(self), -1)
        return np.asarray(same.all(axis=1), np.bool_)

    def captions(self, row: int) -> tuple[str, str]:
        """What is true of an image, and what was predicted, for a person."""
        if self.task == "multiclass":
            share = f" ({self.probability[row]:.0%})"
            return self.names[int(self.true[row])], self.names[int(self.predicted[row])] + share
        if self.task == "multilabel":
            both = ([n for n, has in zip(self.names, of[row] > 0.5, strict=True) if has] for of in self._both)
            true, predicted = (", ".join(names) or "no label" for names in both)
            return true, predicted
        true, predicted = (
            ", ".join(f"{name} {value:.4g}" for name, value in zip(self.names, of[row], strict=True))
            for of in self._both
        )
        return true, predicted

    @property
    def _both(self) -> tuple[Numbers, Numbers]:
        return self.true, self.predicted

    def has_names_of(self, other: PredictedImages) -> bool:
        """Whether another table is of the same labels or numbers; of classes, whether any is the same."""
        if self.task == "multiclass":  # of which a table has those that some image has
            return bool(set(self.names) & set(other.names))
        return set(self.names) == set(other.names)

    def renamed(self, names: Sequence[str]) -> PredictedImages:
        """The same images, with all of its names, and perhaps others, in another order."""
        places = np.array([names.index(name) for name in self.names])
        if self.task == "multiclass":
            true, predicted = (places[of.astype(np.int64)].astype(float) for of in self._both)
        else:
            true, predicted = (of[:, np.argsort(places)] for of in self._both)
        return replace(self, true=true, predicted=predicted, names=names)

    def part(self, rows: Sequence[int]) -> PredictedImages:
        """The images of some rows, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        probability = self.probability[chosen] if len(self.probability) else self.probability
        paths, losses = [self.paths[row] for row in rows], self.losses[chosen]
        true, predicted = (of[chosen] for of in self._both)
        return replace(self, paths=paths, true=true, predicted=predicted, probability=probability, losses=losses)

    def measure(self, weights: Numbers) -> dict[str, Numbers]:
        """Metrics as an evaluation logs them, of images that count so many times.

        Args:
            weights: How often each image counts ``(S, N)``.

        Returns:
            Each metric ``(S,)``.
        """
        total = weights.sum(axis=1)
        metrics = {"loss": weights @ self.losses / total}
        if self.task == "multiclass":
            counts = [_one_hot(classes, len(self.names)) for classes in (self.true, self.predicted)]
            hits = _one_hot(np.where(self.right, self.true, -1), len(self.names))
            metrics |= {"acc": weights @ self.right.astype(float) / total}
            return metrics | _average(weights @ counts[0], weights @ counts[1], weights @ hits)
        if self.task == "multilabel":
            true, predicted = ((of > 0.5).astype(float) for of in self._both)
            metrics |= {"acc": weights @ (true == predicted).mean(axis=1) / total}
            return metrics | _average(weights @ true, weights @ predicted, weights @ (true * predicted))
        errors = self.predicted - self.true
        return metrics | {
            "mae": weights @ np.abs(errors).mean(axis=1) / total,
            "mse": weights @ np.square(errors).mean(axis=1) / total,
        }


def _one_hot(classes: Numbers, num_classes: int) -> csr_array:
    """A one for the class of each image ``(N, K)``; none for a class below 0."""
    rows = np.flatnonzero(classes >= 0)
    places = (rows, classes[rows].astype(np.int64))
    return csr_array((np.ones(len(rows)), places), shape=(len(classes), num_classes))


def _average(true: Numbers, predicted: Numbers, hits: Numbers) -> dict[str, Numbers]:
    """Precision, recall and F1, averaged over the classes that the images have, of counts ``(S, K)``."""
    present = true > 0
    num = np.maximum(present.sum(axis=1), 1)

    def mean(share: Numbers, of: Numbers) -> Numbers:
        values: Numbers = np.divide(share, of, out=np.zeros_like(share), where=of > 0)
        averaged: Numbers = np.where(present, values, 0).sum(axis=1) / num
        return averaged

    return {"precision": mean(hits, predicted), "recall": mean(hits, true), "f1": mean(2 * hits, true + predicted)}


def parse_predictions(rows: Sequence[Cells]) -> PredictedImages | None:
    """The images of the rows of a table of predictions; None where there are no rows.

    Raises:
        ValueError: If it has cells that are no numbers.
        KeyError: If it lacks columns.
    """
    if not rows:
        return None
    paths, losses = [row["path"] for row in rows], _column(rows, "loss")
    if set(rows[0]) == set(_CLASSIFIED):
        names = list(dict.fromkeys(row[key] for key in ("class", "predicted") for row in rows))
        places = {name: float(place) for place, name in enumerate(names)}
        true, predicted = (np.array([places[row[key]] for row in rows]) for key in ("class", "predicted"))
        return PredictedImages("multiclass", paths, true, predicted, _column(rows, "probability"), losses, names)
    columns = list(rows[0])
    task: TaskName = "multilabel" if columns[-2].startswith("probability of ") else "regression"
    names = columns[1 : 1 + (len(columns) - 2) // 2]
    word: Literal["probability", "predicted"] = "probability" if task == "multilabel" else "predicted"
    both = [[_column(rows, start + name) for name in names] for start in ("", f"{word} of ")]
    true, predicted = (np.stack(values, axis=1) for values in both)
    return PredictedImages(task, paths, true, predicted, np.empty(0), losses, names)


def _column(rows: Sequence[Mapping[str, str]], name: str) -> Numbers:
    return np.array([float(row[name]) for row in rows])
