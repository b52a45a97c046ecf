"""Gradual-unfreezing strategies: from stages and a number of epochs to the phases of a plan. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from lit_ft.errors import UserError, unknown
from lit_ft.unfreezing.plan import Phase, PhaseConfig, Plan, PlateauConfig

Strategy = Literal["full", "linear_probe", "deepest", "gradual", "lp_ft", "phases", "plateau", "auto"]
HeadFit = Literal["trained", "solved"]

DEEPEST_SHARE = 0.4
"""Share of the backbone's weights that ``deepest`` trains at least: of four equal stages and a stem, two."""


def make_plan(
    strategy: Strategy,
    stages: Sequence[str],
    max_epochs: int | None,
    epochs_per_stage: int = 1,
    head_epochs: int = 1,
    phases: Sequence[PhaseConfig] | None = None,
    plateau: PlateauConfig | None = None,
    head_fit: HeadFit | None = "trained",
    num_weights: Mapping[str, int] | None = None,
) -> Plan:
    """Turns a strategy into the phases of a run.

    Args:
        strategy: What trains when; see `GradualUnfreezing`.
        stages: All stages, shallow to deep, with the head last.
        max_epochs: Length of the run in epochs; ``None`` where it has none.
        epochs_per_stage: Epochs from one stage to the next of ``gradual``.
        head_epochs: Epochs in which ``deepest``, ``gradual``, ``lp_ft`` and ``auto`` train the head alone; with a
            plateau, at most.
        phases: The phases of ``phases``.
        plateau: Ends the phases of ``plateau``, and the first one of ``lp_ft``.
        head_fit: With ``solved``, the phase of the head alone is left out, as the head is solved before the first one;
            with ``None``, too, where there is such a phase, and no plateau ends it.
        num_weights: Number of weights of each stage, for ``deepest``.

    Raises:
        UserError: If a pattern matches no stage, a phase would never be reached or lasts less than an epoch, the
            head does not train at first, or options contradict each other.

    >>> [phase.trainable for phase in make_plan("gradual", ["stem", "layer1", "head"], max_epochs=3).phases]
    [('head',), ('layer1', 'head'), ('stem', 'layer1', 'head')]
    """
    _check_options(strategy, epochs_per_stage, head_epochs, phases, plateau)
    if head_fit is not None and head_fit not in get_args(HeadFit):
        raise unknown("head_fit", head_fit, get_args(HeadFit), "`unfreeze.head_fit`")
    if strategy == "phases":
        listed = _match_phases(phases or [], stages)
    else:
        deepest = find_deepest(num_weights) if num_weights else list(stages)
        listed = _list_phases(strategy, list(stages), deepest, epochs_per_stage, head_epochs, plateau)
    begins_with_head = listed[0].train == [stages[-1]]
    is_solved = head_fit == "solved" or (head_fit is None and begins_with_head and listed[0].plateau is None)
    if is_solved and begins_with_head:
        del listed[0]
    # Where nothing else trains, no epoch follows.
    laid_out = _lay_out(listed, strategy, max_epochs) if listed else (Phase(0, 0, (stages[-1],)),)
    return Plan(tuple(stages), laid_out, undecided=strategy == "auto", solves_head=is_solved)


def find_deepest(num_weights: Mapping[str, int]) -> list[str]:
    """The head and the fewest stages before it that hold `DEEPEST_SHARE` of the weights of the backbone.

    Args:
        num_weights: Number of weights of each stage, shallow to deep, with the head last.

    >>> find_deepest({"stem": 10, "layer1": 30, "layer2": 30, "layer3": 30, "head": 500})
    ['layer2', 'layer3', 'head']
    """
    stages = list(num_weights)
    least = DEEPEST_SHARE * sum(num_weights[stage] for stage in stages[:-1])
    first = len(stages) - 2
    while first > 0 and sum(num_weights[stage] for stage in stages[first:-1]) < least:
        first -= 1
    return stages[first:]


def _list_phases(
    strategy: Strategy,
    stages: list[str],
    deepest: list[str],
    epochs_per_stage: int,
    head_epochs: int,
    plateau: PlateauConfig | None,
) -> list[PhaseConfig]:
    """The phases of a strategy, as the user could list them."""
    head, last = PhaseConfig(stages[-1:], head_epochs), PhaseConfig(stages)
    unfrozen = [stages[i:] for i in range(len(stages) - 1, 0, -1)]
    match strategy:
        case "full":
            return [last]
        case "linear_probe":
            return [PhaseConfig(stages[-1:])]
        case "deepest":
            return [head, PhaseConfig(deepest)]
        case "lp_ft":
            return [replace(head, plateau=plateau), last]
        case "auto":
            return [head, last]
        case "gradual":
            return [head, *(PhaseConfig(own, epochs_per_stage) for own in unfrozen[1:]), last]
        case "plateau":
            return [*(PhaseConfig(own, plateau=plateau or PlateauConfig()) for own in unfrozen), last]
    raise unknown("strategy", strategy, get_args(Strategy), "`unfreeze.strategy`")


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


def _match_phases(phases: Sequence[PhaseConfig], stages: Sequence[str]) -> list[PhaseConfig]:
    """The phases that the user lists, with the stages that their patterns match."""
    if not phases:
        raise UserError("`unfreeze.phases`: is empty; list at least one phase, such as {train: [head], epochs: 2}")
    matched = []
    for i, phase in enumerate(phases):
        key = f"`unfreeze.phases`[{i}]"
        for pattern in phase.train:
            if not any(fnmatchcase(stage, pattern) for stage in stages):
                raise unknown("stage", pattern, stages, f"{key}.train")
        train = [stage for stage in stages if any(fnmatchcase(stage, pattern) for pattern in phase.train)]
        if not train:
            raise UserError(f"{key}.train: is empty, so nothing would train; choose from {', '.join(stages)}")
        if i == 0 and stages[-1] not in train:
            raise UserError(f"{key}.train: the head is new and must train in the first phase; add {stages[-1]}")
        _check_length(phase, key, is_last=i == len(phases) - 1)
        matched.append(replace(phase, train=train))
    return matched


def _check_length(phase: PhaseConfig, key: str, is_last: bool) -> None:
    """Refuses a phase without an end, or without a length."""
    if phase.epochs is None and phase.plateau is None and not is_last:
        raise UserError(f"{key}.epochs: only the last phase may leave it out, or one with a plateau")
    if phase.epochs is not None and phase.epochs < 1:
        raise UserError(f"{key}.epochs: must be at least 1, got {phase.epochs}")
    if phase.plateau is None:
        return
    phase.plateau.check(f"{key}.plateau")
    if is_last:
        raise UserError(f"{key}.plateau: nothing comes after the last phase; to end the run, use `early_stopping`")
    if phase.epochs is not None and phase.epochs < phase.plateau.min_epochs:
        raise UserError(f"{key}.plateau.min_epochs: is {phase.plateau.min_epochs}, more than epochs, {phase.epochs}")


def _shorter(strategy: str, fits: bool) -> str:
    """How a plan comes to need fewer epochs, of which there may be enough for one a phase."""
    lengths = {"gradual": "`unfreeze.head_epochs` 1 `unfreeze.epochs_per_stage` 1"}
    lengths |= dict.fromkeys(("deepest", "lp_ft", "auto"), "`unfreeze.head_epochs` 1")
    if fits and strategy in lengths:
        return f"shorten its phases, as with {lengths[strategy]}"
    return "list fewer phases with `unfreeze.strategy` phases"


def _lay_out(listed: Sequence[PhaseConfig], strategy: str, max_epochs: int | None) -> tuple[Phase, ...]:
    """Puts the phases one after the other; the last one lasts to the end of the run, whatever it asked for."""
    least = [phase.plateau.min_epochs if phase.plateau else phase.epochs or 1 for phase in listed]
    starts = [sum(least[:i]) for i in range(len(listed))]
    asked = listed[-1].epochs
    if max_epochs is not None and starts[-1] >= max_epochs:
        raise UserError(
            f"`trainer.max_epochs`: strategy {strategy!r} needs at least {starts[-1] + 1} epochs to reach all of its "
            f"{len(listed)} phases, got {max_epochs}; raise it, or {_shorter(strategy, len(listed) <= max_epochs)}"
        )
    if max_epochs is not None and asked is not None and any(phase.plateau for phase in listed):
        raise UserError(
            f"`unfreeze.phases`[{len(listed) - 1}].epochs: the last phase lasts to the end, which a plateau before it "
            "can bring nearer; leave it out"
        )
    if max_epochs is not None and asked is not None and starts[-1] + asked != max_epochs:
        raise UserError(
            f"`unfreeze.phases`: last {starts[-1] + asked} epochs together, but `trainer.max_epochs` is {max_epochs}; "
            "make them equal, or leave the last phase's epochs out"
        )
    phases = []
    for i, (start, phase) in enumerate(zip(starts, listed, strict=True)):
        num_epochs, end = phase.epochs if i < len(listed) - 1 else None, None
        if max_epochs is not None:
            end = max_epochs - sum(least[i + 1 :])
            num_epochs = min(num_epochs or max_epochs, end - start)
        phases.append(Phase(start, num_epochs, tuple(phase.train), phase.plateau, end))
    return tuple(phases)
