"""Tables of plans, before and during a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import indent
from typing import Any, cast

import lightning as L
from torch import Tensor, nn

from lit_ft.backbones.backbone import Backbone, stage_costs, training_share
from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.console import format_bytes, format_table
from lit_ft.unfreezing.callback import GradualUnfreezing, run_epochs
from lit_ft.unfreezing.plan import Phase, Plan, UnfreezingState
from lit_ft.unfreezing.strategies import make_plan


def run_plan(trainer: L.Trainer, module: L.LightningModule) -> Plan:
    """The plan of a run; without a callback that unfreezes, everything trains."""
    return _run_state(trainer, module).plan


def run_starts(trainer: L.Trainer, module: L.LightningModule, epoch: int) -> list[int]:
    """The first epoch of each phase that has begun by ``epoch``."""
    return _run_state(trainer, module).starts_by(epoch)


def _run_state(trainer: L.Trainer, module: L.LightningModule) -> UnfreezingState:
    unfreezing = find_unfreezing(trainer)
    if unfreezing is None:
        return UnfreezingState(make_plan("full", list(cast(Staged, module).stage_modules()), run_epochs(trainer)))
    return unfreezing.state or UnfreezingState(unfreezing.make_plan(module, run_epochs(trainer), trainer))


def find_unfreezing(trainer: L.Trainer) -> GradualUnfreezing | None:
    """The callback that unfreezes, if there is one."""
    callbacks = cast(Any, trainer).callbacks
    return next((callback for callback in callbacks if isinstance(callback, GradualUnfreezing)), None)


def plan_table(trainer: L.Trainer, module: L.LightningModule) -> str:
    """The phases of a plan: epochs, stages, parameters, learning rates, compute, and what DDP reduces in each step.

    Learning rates are those of the trainer's optimizers, if there are some already.
    """
    plan, unfreezing = run_plan(trainer, module), find_unfreezing(trainer)
    stages = cast(Staged, module).stage_modules()
    everything = [parameter for parts in stages.values() for parameter in nn.ModuleList(parts).parameters()]
    whole, macs = sum(parameter.numel() for parameter in everything), stage_macs(module)
    frozen_norm: FrozenNorm = unfreezing.frozen_norm if unfreezing else "eval"
    is_sharded = bool(getattr(getattr(module, "backbone", None), "is_sharded", False))
    rates = stage_rates(trainer, initial=True)
    rows = [("phase", "epochs", "trainable stages", "parameters", "learning rates", "compute", "all-reduce a step")]
    if plan.solves_head:
        num = sum(parameter.numel() for part in stages[plan.stages[-1]] for parameter in part.parameters())
        rows.append(("0", "solved", plan.stages[-1], f"{num:,} ({num / whole:.1%})", "-", "1 pass", "-"))
    for i, phase in enumerate(plan.phases if plan.phases[-1].num_epochs != 0 else ()):
        trained = cast(Staged, module).trainable_parameters(phase.trainable, frozen_norm)
        num = sum(parameter.numel() for parameter in trained)
        names = "all" if phase.trainable == plan.stages and len(plan.stages) > 3 else ", ".join(phase.trainable)
        if plan.undecided and i == len(plan.phases) - 1:
            names = f"chosen after phase {i}, {plan.stages[-1]}"
        trains = [stage in phase.trainable for stage in plan.stages]
        rows.append(
            (
                str(i + 1),
                _format_epochs(phase, after_plateau=any(p.plateau for p in plan.phases[:i])),
                names,
                f"{num:,} ({num / whole:.1%})",
                _format_rates([rates[stage] for stage in phase.trainable if stage in rates]),
                f"{training_share(macs, trains):.0%}" if macs else "-",
                "-" if is_sharded else format_bytes(reduced_bytes(trained)),
            )
        )
    table = indent(format_table(rows), "  ")
    if plan.phases[-1].num_epochs == 0:
        table += "\n  no epochs, as the head alone trains, and is solved; unfreeze.head_fit trained trains it in epochs"
    norm = f"; norms of frozen stages: {frozen_norm}" if unfreezing and len(plan.phases) > 1 else ""
    network = cast(Any, module.hparams).get("backbone", type(module).__name__)
    title = network if isinstance(network, str) else network["class_path"]
    return f"Plan  {title}: {', '.join(plan.stages)}; {whole:,} parameters{norm}\n{table}"


def reduced_bytes(trained: Iterable[Tensor]) -> int:
    """What DDP reduces in each step: the bytes of the gradients of what trains."""
    return sum(parameter.numel() * parameter.element_size() for parameter in trained)


def _format_epochs(phase: Phase, after_plateau: bool) -> str:
    first, num = phase.first_epoch, phase.num_epochs
    if phase.plateau is not None:
        least = phase.plateau.least_epochs
        return f"{least} or more, to a plateau" if num is None else f"{min(least, num)} to {num}, to a plateau"
    if after_plateau:
        return "then the rest" if num is None or phase.latest_end == first + num else f"then {num}"
    return format_epoch_span(first, num)


def format_epoch_span(first: int, num: int | None) -> str:
    """The epochs from the first one on; without a number, to the end of a run without a maximum.

    >>> format_epoch_span(2, 3), format_epoch_span(2, 1), format_epoch_span(2, None)
    ('2-4', '2', '2-…')
    """
    last = None if num is None else first + num - 1
    return f"{first}" if last == first else f"{first}-{'…' if last is None else last}"


def stage_rates(trainer: L.Trainer, initial: bool = False) -> dict[str, float]:
    """The learning rates of the stages, head first; the current ones, or the ``initial`` ones before any schedule."""
    rates: dict[str, float] = {}
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            rate = group.get("initial_lr", group["lr"]) if initial else group["lr"]
            rates.setdefault(group.get("stage", "model"), float(rate))
    return rates


def stage_macs(module: L.LightningModule) -> list[int]:
    """The arithmetic of each stage in a forward pass, with the head last; empty without a `Backbone`."""
    backbone = getattr(module, "backbone", None)
    if not isinstance(backbone, Backbone) or backbone.is_sharded:  # which would gather weights that have no data
        return []
    head = cast(Staged, module).stage_modules().popitem()[1]
    of_head = sum(layer.weight.numel() for part in head for layer in part.modules() if isinstance(layer, nn.Linear))
    return [*(cost.macs for cost in stage_costs(backbone)), of_head]


def _format_rates(rates: Sequence[float]) -> str:
    if not rates:
        return "-"
    return f"{rates[0]:.2g}" if min(rates) == max(rates) else f"{min(rates):.2g} to {max(rates):.2g}"
