"""Whether an exported file gives what the model gave: its own examples, run and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lit_ft.export.description import Description, OutputArray
from lit_ft.export.runtime import ExportedFile

TIE = 1e-6
"""Probabilities that are no further apart are equal: which of them is the largest says nothing."""


@dataclass(frozen=True)
class Agreement:
    """How outputs differ from those that were expected.

    Args:
        differences: The largest difference of each of the N images ``(N,)``, nan where an output is.
        excess: The largest difference, as a multiple of what is allowed.
        changed: The images whose most probable class is another one.
        distance: The largest difference of the distances from the validation images; None where there are none.
    """

    differences: OutputArray
    excess: float
    changed: list[int]
    distance: float | None = None

    @property
    def largest(self) -> float:
        """The largest difference of all."""
        return float(self.differences.max())

    @property
    def holds(self) -> bool:
        """Whether no difference is larger than allowed, and each image has the same class."""
        return self.excess <= 1 and not self.changed  # false for nan


def compare_outputs(
    expected: OutputArray, found: OutputArray, tolerance: Sequence[float], task: str, tie: float = TIE
) -> Agreement:
    """Compares outputs ``(N, K)`` with those that were expected, each of the K by a tolerance of its own.

    For ``multiclass`` the most probable class must be the same one, or one that is as probable but for ``tie``.
    """
    differences = np.abs(found.astype(np.float64) - expected)
    changed = []
    if task == "multiclass":
        best, picked = expected.max(axis=1), np.take_along_axis(expected, found.argmax(axis=1)[:, None], 1)[:, 0]
        changed = [int(row) for row in np.flatnonzero(best - picked > tie)]
    return Agreement(differences.max(axis=1), float((differences / np.asarray(tolerance)).max()), changed)


def run_examples(file: ExportedFile) -> Agreement:
    """Runs the examples in a file, and compares what comes out with what is noted."""
    description, examples = file.description, file.description.examples
    found = file.run_each([example.pixels for example in examples])
    expected = np.stack([example.outputs for example in examples])
    tie = max(description.tolerance) if description.precision == "int8" else TIE
    agreement = compare_outputs(expected, found.outputs, description.tolerance, description.task, tie)
    if found.distances is None:
        return agreement
    apart = float(np.abs(found.distances - np.array([example.distance for example in examples])).max())
    excess = np.maximum(agreement.excess, apart / description.distance_tolerance)  # nan if either is
    return replace(agreement, excess=float(excess), distance=apart)


def format_agreement(agreement: Agreement, description: Description) -> str:
    """The largest difference, and what is allowed, in words.

    >>> description = Description("multiclass", ["a", "b"], 3, "mnist_cnn", [1e-3, 1e-3])
    >>> expected = np.array([[0.25, 0.75]])
    >>> format_agreement(compare_outputs(expected, expected + 0.5, [1e-3, 1e-3], "multiclass"), description)
    'largest difference 0.5, allowed 0.001'
    """
    low, high = min(description.tolerance), max(description.tolerance)
    allowed = f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}, by the output"
    changed = len(agreement.changed)
    others = f"; another class for {changed} of {len(agreement.differences)} images" if changed else ""
    apart = agreement.distance
    distance = "" if apart is None else f"; of distances {apart:.2g}, allowed {description.distance_tolerance:.2g}"
    return f"largest difference {agreement.largest:.2g}, allowed {allowed}{others}{distance}"
