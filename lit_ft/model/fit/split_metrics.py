"""Loss and metrics of the evaluations of a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_ft.errors import unknown
from lit_ft.model.fit.divergence import build_divergence_error
from lit_ft.tasks.classes import warn_absent_classes
from lit_ft.tasks.metrics import MeanLoss
from lit_ft.tasks.task import METRICS, Task


class SplitMetrics(nn.Module):
    """The mean loss and the metrics of a split, over all images of an evaluation.

    Args:
        split: ``val`` or ``test``.
        task: The task.
    """

    def __init__(self, split: str, task: Task) -> None:
        super().__init__()
        self.split = split
        self.metrics = task.metrics(f"{split}/")
        # Not Lightning's mean: with unequal numbers of images in the processes it divides by a rounded mean of them.
        self.loss = MeanLoss()
        self.has_warned = False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, task: Task, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits ``(B, K)`` and targets."""
        task.update(self.metrics, logits, targets)
        self.loss.update(task.loss(logits, targets).expand(len(targets)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def log(self, module: Any, batch_size: int) -> None:
        """Logs loss and metrics; once is enough, as Lightning computes them at the end of the evaluation."""
        main = module.main_metric[0].removeprefix("val/")
        module.log(f"{self.split}/loss", self.loss, prog_bar=True, batch_size=batch_size)
        for name, metric in self.metrics.items(keep_base=True):
            module.log(f"{self.split}/{name}", metric, prog_bar=name == main, batch_size=batch_size)

    def check(self, module: Any, largest_gradient: str | None) -> None:
        """Checks the results of an evaluation; every process must call it.

        Args:
            module: The module that was evaluated.
            largest_gradient: The stage with the largest gradient, where it is known.

        Raises:
            UserError: If the loss is not finite.
        """
        trainer = module.trainer
        if trainer.sanity_checking or trainer.fast_dev_run:
            return  # batch norm has not yet settled after so few steps
        if not trainer.strategy.reduce_boolean_decision(self.loss.update_called, all=False):
            return
        if not bool(self.loss.compute().isfinite()):
            step = module.global_step if trainer.state.fn == "fit" else None
            raise build_divergence_error(module, f"{self.split}/loss", step, largest_gradient)
        if not self.has_warned:
            self.has_warned = True
            warn_absent_classes(self.metrics, self.split, module.class_names)


def refuse_unlogged(callbacks: Iterable[Any], logged: Mapping[str, str], task: str) -> None:
    """Refuses to monitor a metric that the task logs for other numbers of classes alone.

    Args:
        callbacks: Those of a trainer.
        logged: The metrics that a validation logs.
        task: Name of the task.

    Raises:
        UserError: If a callback monitors one.
    """
    others = {f"val/{name}" for name in METRICS[task]} - logged.keys()
    for callback in callbacks:
        if (monitor := getattr(callback, "monitor", None)) in others:
            raise unknown("metric", monitor, logged, f"{type(callback).__name__}.monitor")
