"""Parameter groups under a plan: the epoch in which each is unfrozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning as L

from lit_ft.backbones.freezing import FrozenNorm, Staged
from lit_ft.optim.schedules import enter_epoch
from lit_ft.unfreezing.state import UnfreezingState


def unfreeze_epochs(groups: Sequence[Collection[int]], phases: Mapping[int, Collection[int]]) -> list[float]:
    """The first epoch in which any parameter of each group trains; infinity if none ever does.

    Args:
        groups: The ids of the parameters of each group.
        phases: The ids of the parameters that train, by the first epoch of each phase.

    >>> unfreeze_epochs([[1, 2], [3], [4]], {0: {1}, 5: {1, 2, 3}})
    [0, 5, inf]
    """
    return [
        min((start for start, trained in phases.items() if any(one in trained for one in group)), default=math.inf)
        for group in groups
    ]


def set_unfreeze_epochs(
    trainer: L.Trainer, module: Staged, state: UnfreezingState, frozen_norm: FrozenNorm, max_epochs: int | None
) -> None:
    """Writes ``unfreeze_epoch`` into each parameter group: its learning rate warms up from there.

    Args:
        trainer: The trainer of a fit, at the start of an epoch.
        module: Its stages are the plan's.
        state: The plan, and the phases that have begun.
        frozen_norm: What norm layers of frozen stages do; some of them may train while their stage is frozen.
        max_epochs: Length of the run in epochs; ``None`` where it has none.
    """
    # As far as they are known: a phase that may end by a plateau is assumed to end as late as it can.
    horizon = max_epochs or trainer.current_epoch + sum(phase.num_epochs or 0 for phase in state.plan.phases)
    starts = state.plan.phase_starts(horizon, state.scores, state.starts)
    phases = {
        start: {id(parameter) for parameter in module.trainable_parameters(phase.trainable, frozen_norm)}
        for start, phase in zip(starts, state.plan.phases, strict=False)
    }
    groups: list[dict[str, Any]] = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    epochs = unfreeze_epochs([[id(parameter) for parameter in group["params"]] for group in groups], phases)
    for group, epoch in zip(groups, epochs, strict=True):
        group["unfreeze_epoch"] = epoch
    enter_epoch(trainer)
