"""Decides which of Lightning's weight averaging goes with a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_ft.errors import UserError
from lit_ft.freezing import FrozenNorm
from lit_ft.plan import Plan


def refuse_averaging(
    callbacks: Iterable[Callback], stages: Mapping[str, Sequence[nn.Module]], plan: Plan, frozen_norm: FrozenNorm
) -> None:
    """Refuses stochastic weight averaging that would lose the statistics of frozen batch norm.

    After the last epoch Lightning's callback sets all statistics back and gathers them in one more pass over the data,
    from which frozen layers gather none: they would be left with mean 0 and variance 1.

    Args:
        callbacks: Those of the trainer.
        stages: The modules of each stage.
        plan: What trains when; at that pass it is in its last phase.
        frozen_norm: What norm layers of frozen stages do.

    Raises:
        UserError: If a stage with batch norm is frozen in the last phase.
    """
    if frozen_norm != "eval" or not any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        return
    frozen = [
        name
        for name, parts in stages.items()
        if name not in plan.phases[-1].trainable
        and any(isinstance(module, _BatchNorm) for part in parts for module in part.modules())
    ]
    if frozen:
        raise UserError(
            "--trainer.callbacks: StochasticWeightAveraging would reset the batch norm of the stages that stay frozen "
            f"({', '.join(frozen)}); thaw them in the last phase, give --unfreeze.frozen_norm stats, or use "
            "EMAWeightAveraging"
        )
