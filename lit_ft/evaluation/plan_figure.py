"""Picture of a plan: which stages train in which epochs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lit_ft.evaluation.figure_names import prepare_names
from lit_ft.unfreezing.plan import Plan


def draw_plan(plan: Plan, starts: Sequence[int], num_epochs: int | None, rates: dict[str, float]) -> Any:
    """A picture of a plan: one row per stage, with bars where it trains, darker for higher learning rates.

    Args:
        plan: The plan.
        starts: First epochs of the phases that have begun, from `Plan.phase_starts`.
        num_epochs: Length of the run in epochs, if it has one.
        rates: The learning rate of each stage.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    first = [starts[i] if i < len(starts) else phase.first_epoch for i, phase in enumerate(plan.phases)]
    end = num_epochs if num_epochs is not None else first[-1] + max(1, first[-1] // 2)
    figure = Figure(figsize=(8.0, 1.2 + 0.35 * len(plan.stages)), layout="constrained")
    axes = figure.add_subplot()
    largest = max(rates.values(), default=1.0)
    spans = list(zip(plan.phases, pairwise([*first, end]), strict=True))
    for row, stage in enumerate(plan.stages):
        bars = [(start, stop - start) for phase, (start, stop) in spans if stage in phase.trainable]
        shade = 0.25 + 0.75 * rates.get(stage, largest) / largest
        # In one call: a bar for each stage and phase takes half a minute with a hundred stages.
        axes.broken_barh(bars, (row - 0.4, 0.8), color="tab:blue", alpha=shade)
    for start in first:
        axes.axvline(start, color="0.4", linewidth=0.8)
    names = prepare_names(plan.stages)
    labels = [
        f"{label}, lr {rates[stage]:.2g}" if stage in rates else label
        for stage, label in zip(plan.stages, names.labels, strict=True)
    ]
    axes.set_yticks(range(len(labels)), labels, **names.style)
    axes.set_xlim(0, end)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    is_open = any(phase.plateau for phase in plan.phases[len(starts) - 1 :])
    earliest = " (phases that end by a plateau: their earliest end)" if is_open else ""
    axes.set_xlabel(f"epoch{earliest}{names.note}")
    return figure
