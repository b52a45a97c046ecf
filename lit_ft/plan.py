"""Decides what trains in which epoch: turns a strategy, the stages and a number of epochs into phases. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from lit_ft.errors import UserError, unknown

Strategy = Literal["full", "linear_probe", "gradual", "lp_ft", "phases"]

HEAD = "head"


@dataclass
class PhaseConfig:
    """One phase as a user writes it.

    Args:
        train: Names or patterns of the stages that train, such as ``[head, "layer[34]"]``.
        epochs: How long the phase lasts, in epochs. The last phase may leave it out and then lasts to the end.
    """

    train: list[str]
    epochs: int | None = None


@dataclass(frozen=True)
class Phase:
    """A span of epochs with one set of trainable stages.

    Args:
        first_epoch: The first epoch of the phase, counted from 0.
        num_epochs: How long it lasts, in epochs; ``None`` lasts to the end of a run without a maximum.
        trainable: The stages that train, shallow to deep, with ``head`` last.
    """

    first_epoch: int
    num_epochs: int | None
    trainable: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The phases of a run, in order; they leave no gap.

    Args:
        stages: All stages, shallow to deep, with ``head`` last.
        phases: The phases, the first of which starts at epoch 0.
    """

    stages: tuple[str, ...]
    phases: tuple[Phase, ...]

    def phase_index(self, epoch: int) -> int:
        """The index of the phase that holds ``epoch``, counted from 0; past the end it stays the last.

        >>> plan = make_plan("lp_ft", ["stem", "layer1"], max_epochs=3)
        >>> [plan.phase_index(epoch) for epoch in range(4)]
        [0, 1, 1, 1]
        """
        return max(i for i, phase in enumerate(self.phases) if phase.first_epoch <= epoch)

    def first_epoch(self, stage: str) -> int | None:
        """The epoch in which ``stage`` first trains, or ``None`` where it never does."""
        return next((phase.first_epoch for phase in self.phases if stage in phase.trainable), None)


def make_plan(
    strategy: Strategy,
    backbone_stages: Sequence[str],
    max_epochs: int | None,
    epochs_per_stage: int = 1,
    head_epochs: int = 1,
    phases: Sequence[PhaseConfig] | None = None,
) -> Plan:
    """Turns a strategy into the phases of a run.

    Args:
        strategy: ``full`` trains everything, ``linear_probe`` the head alone, ``gradual`` thaws one stage after the
            other, deepest first, ``lp_ft`` the head and then everything, ``phases`` what the user lists.
        backbone_stages: The backbone's stages, shallow to deep, without the head.
        max_epochs: Length of the run in epochs; ``None`` where it has none.
        epochs_per_stage: Epochs between two thaws of ``gradual``.
        head_epochs: Epochs in which ``gradual`` and ``lp_ft`` train the head alone.
        phases: The phases of ``phases``.

    Raises:
        UserError: If a pattern matches no stage, a phase would never be reached or lasts less than an epoch, the
            head does not train at first, or options contradict each other.

    >>> [phase.trainable for phase in make_plan("gradual", ["stem", "layer1"], max_epochs=3).phases]
    [('head',), ('layer1', 'head'), ('stem', 'layer1', 'head')]
    """
    stages = (*backbone_stages, HEAD)
    for key, value in (("epochs_per_stage", epochs_per_stage), ("head_epochs", head_epochs)):
        if value < 1:
            raise UserError(f"--unfreeze.{key}: must be at least 1 epoch, got {value}")
    if (phases is not None) != (strategy == "phases"):
        given = "no --unfreeze.phases are given" if phases is None else f"--unfreeze.strategy is {strategy!r}"
        raise UserError(f"--unfreeze.phases and --unfreeze.strategy phases belong together, but {given}")
    match strategy:
        case "full":
            spans: list[tuple[int | None, tuple[str, ...]]] = [(None, stages)]
        case "linear_probe":
            spans = [(None, (HEAD,))]
        case "lp_ft":
            spans = [(head_epochs, (HEAD,)), (None, stages)]
        case "gradual":
            thawed = [stages[i:] for i in range(len(stages) - 1, -1, -1)]
            spans = [(head_epochs, thawed[0]), *((epochs_per_stage, t) for t in thawed[1:-1]), (None, thawed[-1])]
        case "phases":
            spans = _listed(phases or [], stages)
        case _:
            raise unknown("strategy", strategy, get_args(Strategy), "--unfreeze.strategy")
    return _lay_out(spans, stages, strategy, max_epochs)


def _listed(phases: Sequence[PhaseConfig], stages: tuple[str, ...]) -> list[tuple[int | None, tuple[str, ...]]]:
    """The spans that the user listed, with their patterns matched against the stages."""
    if not phases:
        raise UserError("--unfreeze.phases: is empty; list at least one phase, such as {train: [head], epochs: 2}")
    spans: list[tuple[int | None, tuple[str, ...]]] = []
    for i, phase in enumerate(phases):
        key = f"--unfreeze.phases[{i}]"
        for pattern in phase.train:
            if not any(fnmatchcase(stage, pattern) for stage in stages):
                raise unknown("stage", pattern, stages, f"{key}.train")
        trainable = tuple(s for s in stages if any(fnmatchcase(s, pattern) for pattern in phase.train))
        if not trainable:
            raise UserError(f"{key}.train: is empty, so nothing would train; choose from {', '.join(stages)}")
        if i == 0 and HEAD not in trainable:
            raise UserError(f"{key}.train: the head is new and must train in the first phase; add {HEAD}")
        if phase.epochs is None and i < len(phases) - 1:
            raise UserError(f"{key}.epochs: only the last phase may leave it out")
        if phase.epochs is not None and phase.epochs < 1:
            raise UserError(f"{key}.epochs: must be at least 1, got {phase.epochs}")
        spans.append((phase.epochs, trainable))
    return spans


def _lay_out(
    spans: list[tuple[int | None, tuple[str, ...]]], stages: tuple[str, ...], strategy: str, max_epochs: int | None
) -> Plan:
    """Puts the spans one after the other; the last one lasts to the end of the run, whatever it asked for."""
    starts = [sum(epochs or 0 for epochs, _ in spans[:i]) for i in range(len(spans))]
    if max_epochs is not None and starts[-1] >= max_epochs:
        raise UserError(
            f"--trainer.max_epochs: strategy {strategy!r} needs at least {starts[-1] + 1} epochs to reach all of its "
            f"{len(spans)} phases, got {max_epochs}; raise it, or list fewer phases with --unfreeze.strategy phases"
        )
    asked = spans[-1][0]
    if max_epochs is not None and asked is not None and starts[-1] + asked != max_epochs:
        raise UserError(
            f"--unfreeze.phases: last {starts[-1] + asked} epochs together, but --trainer.max_epochs is {max_epochs}; "
            "make them equal, or leave the last phase's epochs out"
        )
    ends = [*starts[1:], max_epochs]
    return Plan(
        stages=stages,
        phases=tuple(
            Phase(start, None if end is None else end - start, trainable)
            for start, end, (_, trainable) in zip(starts, ends, spans, strict=True)
        ),
    )
