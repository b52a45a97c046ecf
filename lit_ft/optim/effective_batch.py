"""The batch of an optimizer step over all processes, and what that means for learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EffectiveBatch:
    """The images of an optimizer step.

    Args:
        per_process: Images of a batch, in each process.
        processes: Number of processes.
        accumulated: Batches whose gradients are accumulated.
    """

    per_process: int
    processes: int
    accumulated: int = 1

    @classmethod
    def of(cls, trainer: Any) -> EffectiveBatch | None:
        """That of a fit; None where the data does not tell its ``batch_size``."""
        size = getattr(trainer.datamodule, "batch_size", None)
        return cls(size, trainer.world_size, trainer.accumulate_grad_batches) if isinstance(size, int) else None

    @property
    def images(self) -> int:
        """Their number."""
        return self.per_process * self.processes * self.accumulated

    def __str__(self) -> str:
        """Their number and its factors.

        >>> print(EffectiveBatch(32, 8, 2))
        512 images a step: 32 in each of 8 processes, 2 batches accumulated
        """
        accumulated = f", {self.accumulated} batches accumulated" if self.accumulated > 1 else ""
        where = f" in each of {self.processes:,} processes" if self.processes > 1 else " in a batch"
        return f"{self.images:,} images a step: {self.per_process:,}{where}{accumulated}"

    def format_line(self, lr: float | None) -> str:
        """A line for the log of a fit.

        Args:
            lr: Learning rate of the head, if it is known.

        >>> print(EffectiveBatch(32, 8).format_line(0.001))
        Batch  256 images a step: 32 in each of 8 processes; learning rates are not scaled by it: model.lr is 0.001
        """
        rate = "" if lr is None else f": model.lr is {lr:g}"
        return f"Batch  {self}; learning rates are not scaled by it{rate}"
