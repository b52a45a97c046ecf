"""Divergence: a loss that is not finite ends the run, with its step and the stage of the largest gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lit_ft.compat import attached_trainer
from lit_ft.errors import UserError
from lit_ft.runs import find_best_path

EVERY = 50
"""Steps between two looks where the trainer logs nothing."""
EARLY = (1, 2, 4, 8)
"""Steps with a look of their own, as runs that diverge mostly do so at their beginning."""


class LossWatch:
    """Notes the losses of a fit, and ends it where one is not finite.

    On a CPU each is looked at. From a GPU, or other processes, they are fetched together, after those steps whose
    losses the trainer has just logged, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[int, Tensor]] = []
        self._waits = False
        self.largest: str | None = None  # the stage with the largest gradient, when it was last looked at

    def before_step(self, module: Any) -> None:
        """Looks at what was noted, if it is time."""
        step = module.global_step
        if not self._waits or not (step in EARLY or step % (module.trainer.log_every_n_steps or EVERY) == 0):
            return
        self.look_closely(module)

    def look_closely(self, module: Any) -> None:
        """Looks at what was noted, and at the gradients of the last step."""
        self.look(module)
        self.largest = find_largest_gradient(module) or self.largest

    def note(self, module: Any, loss: Tensor) -> None:
        """Notes the loss of a training step, before its backward pass.

        Raises:
            UserError: If it is looked at at once, and is not finite.
        """
        loss = loss.detach()
        if loss.device.type != "cpu" or _world_size(module) > 1:
            self._waits = True
            self._noted.append((module.global_step, loss.clone()))
        elif not math.isfinite(loss):
            # The gradients are still those of the step before, after which it came to this.
            stage = find_largest_gradient(module) or self.largest
            raise build_divergence_error(module, "train/loss", module.global_step, stage)

    def look(self, module: Any) -> None:
        """Looks at all losses that were noted; every process must call it.

        Raises:
            UserError: If one is not finite, in every process.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        losses = torch.stack([loss for _, loss in noted])
        steps = [step for (step, _), value in zip(noted, losses.tolist(), strict=True) if not math.isfinite(value)]
        first = min(steps, default=math.inf)
        if _world_size(module) > 1:
            least = torch.tensor(float(first), device=losses.device)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
            first = float(least)
        if first < math.inf:
            raise build_divergence_error(module, "train/loss", int(first), self.largest)


def build_divergence_error(module: Any, name: str, step: int | None, stage: str | None) -> UserError:
    """The error for a loss that is not finite.

    Args:
        module: The module that is trained.
        name: Of the loss.
        step: The step in which it was, counted from 0, or after which; None where nothing is trained.
        stage: The one with the largest gradient before that, where it is known.
    """
    trainer = attached_trainer(module)
    if step is None:
        return UserError(f"{name} is not finite: look for weights, images or targets that are not")
    rates = [group["lr"] for optimizer in getattr(trainer, "optimizers", ()) for group in optimizer.param_groups]
    where = [f"learning rate {rate:.3g}" for rate in sorted(rates)[-1:]]
    where += [f"largest gradient in {stage}"] if stage else []
    details = f" ({', '.join(where)})" if where else ""
    advice = "lower `model.lr`, or give `trainer.gradient_clip_val` 1"
    if step == 0:
        advice = "look for weights, images or targets that are not"
    best = find_best_path(trainer) if trainer else None
    kept = f"; best model before that: {best}" if best else ""
    return UserError(f"{name} is not finite in step {step}{details}: {advice}{kept}")


def find_largest_gradient(module: Any) -> str | None:
    """The stage with the largest gradient, by its largest element; None where there is no gradient.

    Of several that are not finite it is the deepest, from which these spread to the others.
    """
    largest: dict[str, Tensor] = {}
    for stage, parts in module.stage_modules().items():
        gradients = [p.grad for part in parts for p in part.parameters() if p.grad is not None]
        if gradients:
            largest[stage] = nn.utils.get_total_norm(gradients, norm_type=math.inf)
    if not largest:
        return None
    values = torch.stack(list(largest.values())).nan_to_num(nan=math.inf, posinf=math.inf).tolist()
    return max(zip(values, range(len(values)), largest, strict=True))[2]


def _world_size(module: Any) -> int:
    trainer = attached_trainer(module)
    return trainer.world_size if trainer else 1
