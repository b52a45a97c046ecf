"""Decides what trains in an epoch: a plan, its phases, and what ends them. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_ft.errors import UserError

Scores = Mapping[int, Mapping[str, float]]
"""What was measured in each epoch, by the metric's name; an epoch without validation has nothing."""


@dataclass
class PlateauConfig:
    """When a metric counts as having stopped to improve, which ends a phase.

    Each phase has a best value of its own, so that a thaw that sets the metric back at first is not held against it.

    Args:
        patience: Epochs without improvement, of those that validate, after which the next phase begins.
        min_epochs: Epochs that the phase lasts at least.
        min_delta: The least change that counts as an improvement.
        baseline: Value that must be surpassed to count as an improvement at all; null counts the first one.
        monitor: The metric; null is val/loss.
        mode: Whether its min or max is best; null follows from the metric, if that is one of lit_ft's or a loss.
    """

    patience: int = 2
    min_epochs: int = 1
    min_delta: float = 0.0
    baseline: float | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None

    def check(self, key: str) -> None:
        """Refuses numbers that make no sense.

        Raises:
            UserError: If one is too small.
        """
        for name, least in (("patience", 1), ("min_epochs", 1), ("min_delta", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{key}.{name}: must be at least {least}, got {getattr(self, name)}")

    @property
    def least_epochs(self) -> int:
        """The number of epochs, if all validate, after which it can be reached at the earliest."""
        return max(self.min_epochs, self.patience + (self.baseline is None))

    def reached_after(self, values: Sequence[float | None]) -> int | None:
        """The number of epochs after which the plateau is reached, or ``None`` if it is not yet.

        Args:
            values: The metric of each epoch of the phase so far; ``None`` where it was not measured.

        >>> PlateauConfig(patience=2).reached_after([1.0, 0.8, 0.9, 0.8, 0.7])
        4
        """
        sign = -1.0 if self.mode == "max" else 1.0
        best = math.inf if self.baseline is None else sign * self.baseline
        waited = 0
        for num_epochs, value in enumerate(values, start=1):
            if value is not None and sign * value < best - self.min_delta:
                best, waited = sign * value, 0
            elif value is not None:  # also nan, which is no improvement
                waited += 1
            if waited >= self.patience and num_epochs >= self.min_epochs:
                return num_epochs
        return None


@dataclass
class PhaseConfig:
    """One phase as a user writes it.

    Args:
        train: Names or patterns of the stages that train, such as ``[head, "layer[34]"]``.
        epochs: How long the phase lasts, in epochs; with a plateau, at most. The last phase may leave it out and then
            lasts to the end.
        plateau: Ends the phase when a metric has stopped to improve.
    """

    train: list[str]
    epochs: int | None = None
    plateau: PlateauConfig | None = None


@dataclass(frozen=True)
class Phase:
    """A span of epochs with one set of trainable stages.

    Args:
        first_epoch: The epoch in which the phase begins, counted from 0; the earliest, if one before ends by plateau.
        num_epochs: How long it lasts, in epochs; at most, if it ends by plateau. ``None`` lasts to the end of a run
            without a maximum.
        trainable: The stages that train, shallow to deep, with the head last.
        plateau: What ends it before that.
        latest_end: The epoch before which it must end, so that every later phase is reached.
    """

    first_epoch: int
    num_epochs: int | None
    trainable: tuple[str, ...]
    plateau: PlateauConfig | None = None
    latest_end: int | None = None


@dataclass(frozen=True)
class Plan:
    """The phases of a run, in order; they leave no gap.

    Args:
        stages: All stages, shallow to deep, with the head last.
        phases: The phases, the first of which starts at epoch 0.
        undecided: Whether the stages of the last phase are still to be chosen, among those that it names.
    """

    stages: tuple[str, ...]
    phases: tuple[Phase, ...]
    undecided: bool = False

    def phase_starts(self, epoch: int, scores: Scores | None = None, begun: Sequence[int] = (0,)) -> list[int]:
        """The first epoch of each phase that has begun by ``epoch``.

        Args:
            epoch: Counted from 0.
            scores: What was measured in the epochs before it.
            begun: The first epochs of phases that are known to have begun, also under a plan of another length.

        >>> plan = Plan(("stem", "head"), (Phase(0, 4, ("head",)), Phase(4, 5, ("stem", "head"))))
        >>> plan.phase_starts(3), plan.phase_starts(4)
        ([0], [0, 4])
        """
        starts = list(begun)
        for phase in self.phases[len(starts) - 1 : -1]:
            length = self._length(phase, range(starts[-1], epoch), scores or {})
            if length is None or starts[-1] + length > epoch:
                break
            starts.append(starts[-1] + length)
        return starts

    @staticmethod
    def _length(phase: Phase, epochs: range, scores: Scores) -> int | None:
        """How long a phase lasts, as far as that is known after some epochs of it."""
        ends = [phase.num_epochs, None if phase.latest_end is None else phase.latest_end - epochs.start]
        if phase.plateau is not None:
            monitor = phase.plateau.monitor or ""
            ends.append(phase.plateau.reached_after([scores.get(epoch, {}).get(monitor) for epoch in epochs]))
        return min((end for end in ends if end is not None), default=None)
