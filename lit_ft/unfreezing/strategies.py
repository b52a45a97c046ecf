"""Gradual-unfreezing strategies: from stages and a number of epochs to the phases of a plan. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from lit_ft.errors import UserError, unknown
from lit_ft.unfreezing.plan import Phase, PhaseConfig, Plan, PlateauConfig

Strategy = Literal["full", "linear_probe", "gradual", "lp_ft", "phases", "plateau", "auto"]


@dataclass(frozen=True)
class _Span:
    """Stages that train, for how many epochs (the maximum, with a plateau), and what ends it earlier."""

    trainable: tuple[str, ...]
    epochs: int | None = None
    plateau: PlateauConfig | None = None

    @property
    def least(self) -> int:
        """Minimum length, in epochs."""
        return self.plateau.min_epochs if self.plateau else self.epochs or 1


def make_plan(
    strategy: Strategy,
    stages: Sequence[str],
    max_epochs: int | None,
    epochs_per_stage: int = 1,
    head_epochs: int = 1,
    phases: Sequence[PhaseConfig] | None = None,
    plateau: PlateauConfig | None = None,
) -> Plan:
    """Turns a strategy into the phases of a run.

    Args:
        strategy: ``full`` trains everything, ``linear_probe`` the head alone, ``lp_ft`` the head and then everything,
            ``gradual`` unfreezes one stage after the other, deepest first, ``plateau`` likewise, each at a plateau,
            ``auto`` the head and then the stages that `Plan.decide` gets, ``phases`` what the user lists.
        stages: All stages, shallow to deep, with the head last.
        max_epochs: Length of the run in epochs; ``None`` where it has none.
        epochs_per_stage: Epochs from one stage to the next of ``gradual``.
        head_epochs: Epochs in which ``gradual``, ``lp_ft`` and ``auto`` train the head alone; with a plateau, at most.
        phases: The phases of ``phases``.
        plateau: Ends the phases of ``plateau``, and the first one of ``lp_ft``.

    Raises:
        UserError: If a pattern matches no stage, a phase would never be reached or lasts less than an epoch, the
            head does not train at first, or options contradict each other.

    >>> [phase.trainable for phase in make_plan("gradual", ["stem", "layer1", "head"], max_epochs=3).phases]
    [('head',), ('layer1', 'head'), ('stem', 'layer1', 'head')]
    """
    _check_options(strategy, epochs_per_stage, head_epochs, phases, plateau)
    if strategy == "phases":
        spans = _user_spans(phases or [], tuple(stages))
    else:
        spans = _spans(strategy, tuple(stages), epochs_per_stage, head_epochs, plateau)
    return Plan(tuple(stages), _lay_out(spans, strategy, max_epochs), undecided=strategy == "auto")


def _spans(
    strategy: Strategy, stages: tuple[str, ...], epochs_per_stage: int, head_epochs: int, plateau: PlateauConfig | None
) -> list[_Span]:
    """The spans of a strategy that lays them out by itself."""
    head, unfrozen = stages[-1:], [stages[i:] for i in range(len(stages) - 1, -1, -1)]
    match strategy:
        case "full":
            return [_Span(stages)]
        case "linear_probe":
            return [_Span(head)]
        case "lp_ft":
            return [_Span(head, head_epochs, plateau), _Span(stages)]
        case "auto":
            return [_Span(head, head_epochs), _Span(stages)]
        case "gradual":
            return [_Span(head, head_epochs), *(_Span(u, epochs_per_stage) for u in unfrozen[1:-1]), _Span(stages)]
        case "plateau":
            return [*(_Span(u, plateau=plateau or PlateauConfig()) for u in unfrozen[:-1]), _Span(stages)]
    raise unknown("strategy", strategy, get_args(Strategy), "`unfreeze.strategy`")


def choose_stages(gradients: Mapping[str, float], threshold: float) -> tuple[str, ...]:
    """The stages that ``auto`` trains: those whose relative gradient is at least a share of the largest one.

    >>> choose_stages({"stem": 0.1, "layer1": 0.6, "layer2": 1.0}, threshold=0.5)
    ('layer1', 'layer2')
    """
    largest = max(gradients.values(), default=0.0)
    return tuple(stage for stage, value in gradients.items() if value >= threshold * largest)


def _check_options(
    strategy: str,
    epochs_per_stage: int,
    head_epochs: int,
    phases: Sequence[PhaseConfig] | None,
    plateau: PlateauConfig | None,
) -> None:
    """Refuses options that are out of range, or belong to another strategy."""
    for key, value in (("epochs_per_stage", epochs_per_stage), ("head_epochs", head_epochs)):
        if value < 1:
            raise UserError(f"`unfreeze.{key}`: must be at least 1 epoch, got {value}")
    if (phases is not None) != (strategy == "phases"):
        given = "no `unfreeze.phases` are given" if phases is None else f"`unfreeze.strategy` is {strategy!r}"
        raise UserError(f"`unfreeze.phases` and `unfreeze.strategy` phases belong together, but {given}")
    if plateau is None:
        return
    plateau.check("`unfreeze.plateau`")
    if strategy not in ("plateau", "lp_ft"):
        hint = "give each of the phases its own" if strategy == "phases" else "choose plateau or lp_ft"
        raise UserError(f"`unfreeze.plateau`: `unfreeze.strategy` {strategy} does not take it; {hint}")
    if strategy == "lp_ft" and max(plateau.patience + 1, plateau.min_epochs) > head_epochs:
        raise UserError(
            f"`unfreeze.head_epochs`: is {head_epochs}, which ends the first phase before any plateau of patience "
            f"{plateau.patience} and min_epochs {plateau.min_epochs}; raise it, the most that the phase may last"
        )


def _match(patterns: Sequence[str], stages: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(stage for stage in stages if any(fnmatchcase(stage, pattern) for pattern in patterns))


def _user_spans(phases: Sequence[PhaseConfig], stages: tuple[str, ...]) -> list[_Span]:
    """The spans that the user lists, with their patterns matched against the stages."""
    if not phases:
        raise UserError("`unfreeze.phases`: is empty; list at least one phase, such as {train: [head], epochs: 2}")
    head = stages[-1]
    spans = []
    for i, phase in enumerate(phases):
        key = f"`unfreeze.phases`[{i}]"
        for pattern in phase.train:
            if not _match([pattern], stages):
                raise unknown("stage", pattern, stages, f"{key}.train")
        trainable = _match(phase.train, stages)
        if not trainable:
            raise UserError(f"{key}.train: is empty, so nothing would train; choose from {', '.join(stages)}")
        if i == 0 and head not in trainable:
            raise UserError(f"{key}.train: the head is new and must train in the first phase; add {head}")
        _check_length(phase, key, last=i == len(phases) - 1)
        spans.append(_Span(trainable, phase.epochs, phase.plateau))
    return spans


def _check_length(phase: PhaseConfig, key: str, last: bool) -> None:
    """Refuses a phase without an end, or without a length."""
    if phase.epochs is None and phase.plateau is None and not last:
        raise UserError(f"{key}.epochs: only the last phase may leave it out, or one with a plateau")
    if phase.epochs is not None and phase.epochs < 1:
        raise UserError(f"{key}.epochs: must be at least 1, got {phase.epochs}")
    if phase.plateau is None:
        return
    phase.plateau.check(f"{key}.plateau")
    if last:
        raise UserError(f"{key}.plateau: nothing comes after the last phase; to end the run, use `early_stopping`")
    if phase.epochs is not None and phase.epochs < phase.plateau.min_epochs:
        raise UserError(f"{key}.plateau.min_epochs: is {phase.plateau.min_epochs}, more than epochs, {phase.epochs}")


def _lay_out(spans: Sequence[_Span], strategy: str, max_epochs: int | None) -> tuple[Phase, ...]:
    """Puts the spans one after the other; the last one lasts to the end of the run, whatever it asked for."""
    starts = [sum(span.least for span in spans[:i]) for i in range(len(spans))]
    if max_epochs is not None and starts[-1] >= max_epochs:
        raise UserError(
            f"`trainer.max_epochs`: strategy {strategy!r} needs at least {starts[-1] + 1} epochs to reach all of its "
            f"{len(spans)} phases, got {max_epochs}; raise it, or list fewer phases with `unfreeze.strategy` phases"
        )
    asked = spans[-1].epochs
    if max_epochs is not None and asked is not None and any(span.plateau for span in spans):
        raise UserError(
            f"`unfreeze.phases`[{len(spans) - 1}].epochs: the last phase lasts to the end, which a plateau before it "
            "can bring nearer; leave it out"
        )
    if max_epochs is not None and asked is not None and starts[-1] + asked != max_epochs:
        raise UserError(
            f"`unfreeze.phases`: last {starts[-1] + asked} epochs together, but `trainer.max_epochs` is {max_epochs}; "
            "make them equal, or leave the last phase's epochs out"
        )
    phases = []
    for i, (start, span) in enumerate(zip(starts, spans, strict=True)):
        later = sum(rest.least for rest in spans[i + 1 :])
        end = None if max_epochs is None else max_epochs - later
        longest = None if end is None else end - start
        num_epochs = span.epochs if i < len(spans) - 1 else None
        if longest is not None:
            num_epochs = min(num_epochs or longest, longest)
        phases.append(Phase(start, num_epochs, span.trainable, span.plateau, end))
    return tuple(phases)
