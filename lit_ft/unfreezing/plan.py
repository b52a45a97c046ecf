"""Plans: which stages train in which epochs, what ends a phase, and which phases of a fit have begun. No torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lit_ft.errors import UserError, unknown
from lit_ft.tasks.monitored import Mode


@dataclass
class PlateauConfig:
    """When a metric has stopped improving, which ends a phase.

    Each phase has its own best value: unfreezing a stage may worsen the metric at first.

    Args:
        patience: Epochs without improvement, of those that validate, after which the next phase begins.
        min_epochs: Minimum length of the phase, in epochs.
        min_delta: Minimum change that counts as an improvement.
        baseline: Value that the metric must surpass to improve; null is the first value.
        monitor: The metric; null is val/loss.
        mode: Whether its min or max is best; null infers it for losses and for the metrics of lit_ft.
    """

    patience: int = 2
    min_epochs: int = 1
    min_delta: float = 0.0
    baseline: float | None = None
    monitor: str | None = None
    mode: Mode | None = None

    def check(self, key: str) -> None:
        """Raises `UserError` if a number is out of range."""
        for name, least in (("patience", 1), ("min_epochs", 1), ("min_delta", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{key}.{name}: must be at least {least}, got {getattr(self, name)}")

    @property
    def least_epochs(self) -> int:
        """The number of epochs before it can be reached, if all validate."""
        return max(self.min_epochs, self.patience + (self.baseline is None))

    def resolve(self, modes: Mapping[str, Mode]) -> PlateauConfig:
        """Fills in the metric and its mode by the modes of the metrics that are logged; empty if these are not known.

        Raises:
            UserError: If the metric is not logged, or its mode is not known.
        """
        monitor = self.monitor or "val/loss"
        if modes and monitor not in modes:
            raise unknown("metric", monitor, modes, "`unfreeze.plateau.monitor`")
        mode = self.mode or modes.get(monitor) or ("min" if "loss" in monitor else None)
        if mode is None:
            raise UserError(f"`unfreeze.plateau.mode`: say whether the min or the max of {monitor} is best")
        return replace(self, monitor=monitor, mode=mode)

    def reached_after(self, values: Sequence[float | None]) -> int | None:
        """The number of epochs after which the plateau is reached, or ``None`` if it is not reached yet.

        Args:
            values: The metric of each epoch of the phase so far; ``None`` where the epoch had no validation.

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
    """One phase of a config.

    Args:
        train: Names or patterns of the stages that train, such as ``[head, "layer[34]"]``.
        epochs: Length of the phase, in epochs; with a plateau, its maximum. The last phase may leave it out and then
            lasts to the end.
        plateau: Ends the phase when a metric has stopped improving.
    """

    train: list[str]
    epochs: int | None = None
    plateau: PlateauConfig | None = None

    def __post_init__(self) -> None:
        if isinstance(self.plateau, dict):
            self.plateau = PlateauConfig(**self.plateau)


@dataclass(frozen=True)
class Phase:
    """A span of epochs with one set of trainable stages.

    Args:
        first_epoch: The epoch in which the phase begins, counted from 0; the earliest, if one before ends by plateau.
        num_epochs: Length in epochs; the maximum, if it ends by plateau. ``None`` lasts to the end of a run without a
            maximum.
        trainable: The stages that train, shallow to deep, with the head last.
        plateau: Ends the phase earlier.
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
        solves_head: Whether the head is solved before the first epoch.

    >>> plan = Plan(("stem", "layer1", "head"), (Phase(0, 2, ("stem", "layer1", "head")),), undecided=True)
    >>> plan.decide(["layer1"]).phases[-1].trainable
    ('layer1', 'head')
    """

    stages: tuple[str, ...]
    phases: tuple[Phase, ...]
    undecided: bool = False
    solves_head: bool = False

    def decide(self, chosen: Collection[str]) -> Plan:
        """Lets just the chosen stages and the head train in the last phase, if that is undecided and any are chosen."""
        if not (self.undecided and chosen):
            return self
        *phases, last = self.phases
        trainable = tuple(stage for stage in self.stages if stage in chosen or stage == self.stages[-1])
        return replace(self, phases=(*phases, replace(last, trainable=trainable)), undecided=False)

    def resolve_plateaus(self, modes: Mapping[str, Mode]) -> Plan:
        """Fills in the metrics of all plateaus; see `PlateauConfig.resolve`."""
        phases = (replace(phase, plateau=phase.plateau and phase.plateau.resolve(modes)) for phase in self.phases)
        return replace(self, phases=tuple(phases))

    def monitored(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Those of the metrics that plateaus watch; raises `UserError` if one is missing."""
        watched = [str(phase.plateau.monitor) for phase in self.phases if phase.plateau]
        for monitor in watched:
            if monitor not in metrics:
                raise unknown("metric", monitor, metrics, "`unfreeze.plateau.monitor`")
        return {monitor: float(metrics[monitor]) for monitor in watched}

    def phase_starts(
        self, epoch: int, scores: Mapping[int, Mapping[str, float]] | None = None, begun: Sequence[int] = (0,)
    ) -> list[int]:
        """The first epoch of each phase that has begun by ``epoch``.

        Args:
            epoch: Counted from 0.
            scores: The metrics of the epochs before it, by epoch and name, where these validate.
            begun: The first epochs of phases that have begun already, also under a plan of another length.

        >>> plan = Plan(("stem", "head"), (Phase(0, 4, ("head",)), Phase(4, 5, ("stem", "head"))))
        >>> plan.phase_starts(3), plan.phase_starts(4)
        ([0], [0, 4])
        """
        starts = list(begun)
        for phase in self.phases[len(starts) - 1 : -1]:
            ends = [phase.num_epochs, None if phase.latest_end is None else phase.latest_end - starts[-1]]
            if phase.plateau is not None:
                metrics = [(scores or {}).get(past, {}) for past in range(starts[-1], epoch)]
                ends.append(phase.plateau.reached_after([one.get(phase.plateau.monitor or "") for one in metrics]))
            length = min((end for end in ends if end is not None), default=math.inf)
            if starts[-1] + length > epoch:
                break
            starts.append(starts[-1] + int(length))
        return starts


@dataclass
class UnfreezingState:
    """The plan of a fit, and the phases that have begun.

    Args:
        starts: The first epochs of the phases that have begun: a run that is resumed for longer keeps to them.
        scores: The metrics that end phases, by epoch and name.
        gradients: The relative gradient of each stage, where stages are chosen by it.
    """

    plan: Plan
    starts: list[int] = field(default_factory=lambda: [0])
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Index of the current phase."""
        return len(self.starts) - 1

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self.plan.phases[self.index]

    @property
    def is_adaptive(self) -> bool:
        """Whether phases follow from what the run measures, and not from the options alone."""
        return bool(self.gradients) or any(phase.plateau for phase in self.plan.phases)

    def starts_by(self, epoch: int) -> list[int]:
        """The first epoch of each phase that has begun by ``epoch``, or will have by what is known now."""
        return self.plan.phase_starts(epoch, self.scores, self.starts)

    def decide(self, gradients: Mapping[str, float], threshold: float) -> None:
        """Chooses the stages of an undecided plan: those with at least a share of the largest relative gradient."""
        self.gradients = dict(gradients)
        least = threshold * max(gradients.values(), default=0.0)
        self.plan = self.plan.decide([stage for stage, value in gradients.items() if value >= least])

    def to_plain(self) -> dict[str, Any]:
        """The state as a checkpoint holds it; its plan is for people, and is compared on resume."""
        phases = [{**asdict(phase), "trainable": list(phase.trainable)} for phase in self.plan.phases]
        return {"plan": phases, "scores": self.scores, "gradients": self.gradients, "starts": self.starts}

    def load_plain(self, saved: Mapping[str, Any], threshold: float) -> None:
        """Takes all but the plan from a checkpoint, and decides the plan by it."""
        self.scores = {epoch: dict(scores) for epoch, scores in saved.get("scores", {}).items()}
        self.starts = list(saved.get("starts", [0]))
        self.decide(saved.get("gradients", {}), threshold)
