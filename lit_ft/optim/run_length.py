"""The length of a run, in epochs and in optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunLength:
    """Where a run ends: after a number of epochs or of optimizer steps, whichever comes first.

    Args:
        epoch_steps: Optimizer steps in an epoch; infinite for data without a length.
        max_epochs: Epochs after which the run ends; infinite where it has no such end.
        max_steps: Optimizer steps after which it ends, likewise.

    >>> RunLength(epoch_steps=4, max_epochs=3).total_steps, RunLength(epoch_steps=4, max_steps=10).total_steps
    (12, 10)
    """

    epoch_steps: float = math.inf
    max_epochs: float = math.inf
    max_steps: float = math.inf

    @classmethod
    def of(cls, trainer: Any) -> RunLength:
        """The length of a trainer's fit, whose training data is set up, as far as this epoch tells."""
        batches, accumulated = trainer.num_training_batches, trainer.accumulate_grad_batches
        return cls(
            batches if math.isinf(batches) else max(1, math.ceil(batches / accumulated)),
            math.inf if trainer.max_epochs in (None, -1) else max(1, trainer.max_epochs),
            math.inf if trainer.max_steps in (None, -1) else trainer.max_steps,
        )

    @property
    def total_steps(self) -> float:
        """Optimizer steps from the first epoch to the end, if all epochs are as long as this one."""
        return min(self.max_epochs * self.epoch_steps, self.max_steps)

    def in_epochs(self) -> RunLength:
        """The same run in which an epoch counts as one step, for what goes on epoch by epoch."""
        known = math.isfinite(self.epoch_steps)
        return RunLength(1, self.total_steps / self.epoch_steps if known else self.max_epochs)

    def format_no_end(self, name: str) -> str:
        """The error of a scheduler that must know where the run ends, where that is unknown."""
        if math.isinf(self.max_epochs):
            return f"`lr_scheduler`: {name} needs a run with an end; set `trainer.max_epochs`"
        return (
            f"`lr_scheduler`: {name} needs the number of steps, but data without a length does not tell that of an "
            "epoch; set `trainer.max_steps`, or take WarmupCosine"
        )
