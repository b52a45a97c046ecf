"""State of unfreezing in a fit: the plan, the phases that have begun, and what decided them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_ft.unfreezing.plan import Phase, Plan
from lit_ft.unfreezing.strategies import choose_stages


@dataclass
class UnfreezingState:
    """The plan of a fit, and the phases that have begun.

    Args:
        plan: The plan.
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

    def enter(self, epoch: int) -> None:
        """Begins the phases that begin by an epoch."""
        self.starts = self.plan.phase_starts(epoch, self.scores, self.starts)

    def record(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of an epoch that may end phases."""
        if metrics:
            self.scores.setdefault(epoch, {}).update(metrics)

    def decide(self, gradients: Mapping[str, float], threshold: float) -> None:
        """Chooses the stages of the last phase by their gradients; see `choose_stages`."""
        self.gradients = dict(gradients)
        self.plan = self.plan.decide(choose_stages(self.gradients, threshold))

    def to_plain(self) -> dict[str, Any]:
        """The state as a checkpoint holds it; its plan is for people, and is compared on resume."""
        phases = [{**asdict(phase), "trainable": list(phase.trainable)} for phase in self.plan.phases]
        return {"plan": phases, "scores": self.scores, "gradients": self.gradients, "starts": self.starts}

    def load_plain(self, saved: Mapping[str, Any], threshold: float) -> None:
        """Takes all but the plan from a checkpoint, and decides the plan by it."""
        self.scores = {epoch: dict(scores) for epoch, scores in saved.get("scores", {}).items()}
        self.starts = list(saved.get("starts", [0]))
        self.decide(saved.get("gradients", {}), threshold)
