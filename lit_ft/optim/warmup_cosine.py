"""The warm-up and cosine schedule, in which each stage warms up when it is unfrozen."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ft.errors import UserError
from lit_ft.optim.run_length import RunLength


class WarmupCosine(LRScheduler):
    """Warms up linearly, then follows half a cosine down to ``final_fraction``.

    A stage that is unfrozen in mid-run warms up from its own first step, and joins the same cosine
    (`Loshchilov and Hutter 2017 <https://arxiv.org/abs/1608.03983>`_, eq. 5, without restarts).

    Its position is the progress of the run in epochs, so that a run which is resumed with another number of steps in an
    epoch, or for more epochs, goes on along the same curve. That is drawn in steps of the epoch in which the run began.

    Args:
        optimizer: Its groups may have ``unfreeze_epoch``, the epoch in which they begin to train, or infinity.
        total_steps: Length of the run in optimizer steps; filled in from the trainer.
        warmup_fraction: Length of each warm-up as a share of the run.
        final_fraction: Share of the learning rate that is left at the end.
        first_step: Step of the run at which the schedule begins; filled in where it follows on another one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: float,
        warmup_fraction: float = 0.05,
        final_fraction: float = 0.0,
        first_step: int = 0,
    ) -> None:
        if not 0.0 <= warmup_fraction < 1.0:
            raise UserError(f"`lr_scheduler.warmup_fraction`: must be at least 0 and below 1, got {warmup_fraction}")
        self.warmup_fraction = warmup_fraction
        self.final_fraction = final_fraction
        self.first_step = first_step
        self._set_length(total_steps)
        # Steps in the epoch with which the run began, in which the curve is drawn, and in the present epoch; as long as
        # no trainer has told them, an epoch is a step.
        self.curve_steps: float | None = None
        self.epoch_steps: float = 1
        # A place of the run, from which the steps of the present epoch are counted: its progress, and torch's count.
        self.mark_epoch: float = 0
        self.mark_step = 0
        super().__init__(optimizer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the position; the length stays this run's own, so that a run can be resumed for more epochs."""
        own = ("total_steps", "warmup_steps", "warmup_fraction", "final_fraction", "first_step")
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in own})

    def set_epoch_steps(self, epoch_steps: float) -> None:
        """Sets the optimizer steps of an epoch once, for a part of another schedule, which counts steps alone."""
        if self.curve_steps is None:
            self.curve_steps = self.epoch_steps = epoch_steps

    def enter(self, epoch: int, length: RunLength) -> None:
        """Sets position and rates as the run begins an epoch of that length, counted from 0, or is resumed within one.

        Raises:
            UserError: If the run has no end, or is resumed with data whose length is not known any more.
        """
        self.set_epoch_steps(length.epoch_steps)
        curve_steps = cast(float, self.curve_steps)
        if math.isinf(length.epoch_steps) and math.isfinite(curve_steps):
            raise UserError(
                "`ckpt_path`: its run had data with a length, by which its learning rates go on; give such data"
            )
        is_marked = epoch <= self.mark_epoch < epoch + 1
        if math.isfinite(curve_steps) and not (is_marked and self.epoch_steps == length.epoch_steps):
            progress = self._steps_at(self.last_epoch) / curve_steps
            # Otherwise the epoch before had fewer or more steps than it began with.
            self.mark_epoch = progress if epoch <= progress <= epoch + 1 else epoch
            self.mark_step = self.last_epoch
            self.epoch_steps = length.epoch_steps
        total_steps = min(length.max_epochs * curve_steps, self._steps_at(length.max_steps))
        if math.isinf(total_steps):
            raise UserError(length.format_no_end(type(self).__name__))
        self._set_length(total_steps)
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate

    def get_last_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group, as it is now."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _steps_at(self, step: float) -> float:
        """The steps of the curve up to a step of the run, at the pace of the present epoch."""
        if self.curve_steps is None or math.isinf(self.curve_steps) or math.isinf(step):
            return step
        return self.mark_epoch * self.curve_steps + (step - self.mark_step) * self.curve_steps / self.epoch_steps

    def factor(self, step: float, unfreeze_step: float = 0) -> float:
        """Share of a group's learning rate at a step of the curve, both steps counted from the schedule's first."""
        start = max(0, unfreeze_step)  # what was unfrozen before the schedule began warms up with it
        rise = min(1.0, (step - start + 1) / max(1, self.warmup_steps)) if step >= start else 0.0
        position = min(1.0, max(0, step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * position))
        return rise * (self.final_fraction + (1.0 - self.final_fraction) * cosine)

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rate of each group at the current step."""
        step = self._steps_at(self.last_epoch)  # torch's name for the number of calls so far
        return [
            base * self.factor(step, self._curve_step(group.get("unfreeze_epoch", 0)))
            for base, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def _curve_step(self, epoch: float) -> float:
        """The step of the schedule at which an epoch begins; for data without a length that is not known."""
        curve_steps = 1 if self.curve_steps is None else self.curve_steps
        if math.isinf(curve_steps) and math.isfinite(epoch):
            return 0
        return epoch * curve_steps - self.first_step

    def _set_length(self, total_steps: float) -> None:
        self.total_steps = total_steps
        self.warmup_steps = math.inf if math.isinf(total_steps) else math.ceil(self.warmup_fraction * total_steps)
