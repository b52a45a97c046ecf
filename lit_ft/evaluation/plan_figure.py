"""Picture of a plan: which stages train in which epochs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lit_ft.evaluation.figure_text import drawable
from lit_ft.unfreezing.plan import Plan


def plan_figure(plan: Plan, starts: Sequence[int], epoch: int | None, rates: dict[str, float]) -> Any:
    """A picture of a plan: a row a stage, with a bar where it trains, darker where its learning rate is higher.

    Args:
        plan: The plan.
        starts: The first epochs of the phases that are known, as of `Plan.phase_starts`.
        epoch: The length of the run in epochs, if it has one.
        rates: The learning rate of each stage.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    first = [starts[i] if i < len(starts) else phase.first_epoch for i, phase in enumerate(plan.phases)]
    end = epoch if epoch is not None else first[-1] + max(1, first[-1] // 2)
    figure = Figure(figsize=(8.0, 1.2 + 0.35 * len(plan.stages)), layout="constrained")
    axes = figure.add_subplot()
    largest = max(rates.values(), default=1.0)
    spans = list(zip(plan.phases, pairwise([*first, end]), strict=True))
    for row, stage in enumerate(plan.stages):
        bars = [(start, stop - start) for phase, (start, stop) in spans if stage in phase.trainable]
        shade = 0.25 + 0.75 * rates.get(stage, largest) / largest
        # In one: a bar a stage and phase of its own takes half a minute with a hundred stages.
        axes.broken_barh(bars, (row - 0.4, 0.8), color="tab:blue", alpha=shade)
    for start in first:
        axes.axvline(start, color="0.4", linewidth=0.8)
    shown = drawable(plan.stages)
    told = [_told_stage(stage, label, rates) for stage, label in zip(plan.stages, shown.labels, strict=True)]
    axes.set_yticks(range(len(told)), told, **shown.style)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    earliest = " (phases that end by a plateau: their earliest end)" if _open(plan, starts) else ""
    axes.set_xlabel(f"epoch{earliest}{shown.note}")
    return figure


def _open(plan: Plan, starts: Sequence[int]) -> bool:
    return any(phase.plateau for phase in plan.phases[len(starts) - 1 :])


def _told_stage(stage: str, label: str, rates: dict[str, float]) -> str:
    return f"{label}, lr {rates[stage]:.2g}" if stage in rates else label
