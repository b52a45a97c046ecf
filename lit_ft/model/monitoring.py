"""Losses and metrics of a run: a loss that is not finite ends it, with its step and the largest gradient's stage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lit_ft.compat import attached_trainer
from lit_ft.data.loading.loader import Loader
from lit_ft.errors import UserError, unknown
from lit_ft.model.sharding import whole
from lit_ft.runs import find_best_path
from lit_ft.tasks.metrics import MeanLoss, warn_absent_classes
from lit_ft.tasks.monitored import MAIN_METRIC, METRICS
from lit_ft.tasks.task import Task

EVERY = 50  # steps between two looks where the trainer logs nothing
_WAITING_VALUES = 1 << 20  # logits that wait to be counted by metrics
EARLY = (1, 2, 4, 8)  # steps with a look of their own, as runs that diverge mostly do so at their beginning


class LossWatch:
    """Notes the losses of a fit, and ends it where one is not finite.

    On a CPU each is looked at. From a GPU, or other processes, they are fetched together, after those steps whose
    losses the trainer has just logged, so that no step waits for it.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[int, Tensor]] = []
        self._waits = False
        self.warned_splits: set[str] = set()
        self.largest: str | None = None  # the stage with the largest gradient, when it was last looked at

    def before_step(self, module: Any) -> None:
        """Looks at what was noted, if it is time."""
        step = module.global_step
        if self._waits and (step in EARLY or step % (module.trainer.log_every_n_steps or EVERY) == 0):
            self.look_closely(module)

    def look_closely(self, module: Any) -> None:
        """Looks at what was noted, and at the gradients of the last step."""
        self.look(module)
        self.largest = find_largest_gradient(module) or self.largest

    def note(self, module: Any, loss: Tensor) -> None:
        """Notes the loss of a training step, before its backward pass, and looks at it if it need not wait."""
        loss = loss.detach()
        if loss.device.type != "cpu" or _world_size(module) > 1:
            self._waits = True
            self._noted.append((module.global_step, loss.clone()))
        elif not math.isfinite(loss):
            # The gradients are still those of the step before, after which it came to this.
            stage = find_largest_gradient(module) or self.largest
            raise build_divergence_error(module, "train/loss", module.global_step, stage)

    def look(self, module: Any) -> None:
        """Raises `UserError` in every process, all of which must call it, if a loss that was noted is not finite."""
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


class _Waiting:
    """Batches that wait to be counted many at a time, as one by one they would take as long as a small network.

    They wait in memory of their own: kept as they are, they would be small pieces in what a step has freed, where its
    large tensors then no longer fit, and the process would grow by gigabytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit  # values of logits
        self._kept = torch.empty(0), torch.empty(0)  # until there is a batch
        self._num = 0

    def add(self, logits: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Adds a batch, logits ``(B, K)`` and targets, and gives those, joined, that must wait no longer."""
        given, due = (logits.detach(), targets), []
        end = self._num + len(logits)
        if end > len(self._kept[0]) or list(map(_kind, self._kept)) != list(map(_kind, given)):
            due = self.take()
            end, rows = len(logits), max(len(logits), self._limit * len(logits) // max(1, logits.numel()))
            with torch.inference_mode(False):  # whatever trainer evaluates next
                self._kept = logits.new_empty(rows, *logits.shape[1:]), targets.new_empty(rows, *targets.shape[1:])
        for kept, new in zip(self._kept, given, strict=True):
            kept[self._num : end] = new
        self._num = end
        return due if self._limit else [*due, *self.take()]

    def take(self) -> list[tuple[Tensor, Tensor]]:
        """Those that wait, joined, of which none waits any more."""
        num, self._num = self._num, 0
        logits, targets = self._kept
        return [(logits[:num].clone(), targets[:num].clone())] if num else []  # metrics may keep them


def _kind(batch: Tensor) -> tuple[Any, ...]:
    return batch.dtype, batch.device, batch.shape[1:]


class SplitMetrics(nn.Module):
    """The mean loss and the metrics of a split, ``val`` or ``test``, over all images of an evaluation."""

    def __init__(self, split: str, task: Task) -> None:
        super().__init__()
        self.split = split
        self.metrics = task.metrics(f"{split}/")
        # Not Lightning's mean: with unequal numbers of images in the processes it divides by a rounded mean of them.
        self.loss = MeanLoss()
        self._waiting = _Waiting(_WAITING_VALUES)

    def reset(self) -> None:
        """Forgets what was counted, also by an evaluation that did not end, of which another trainer knows nothing."""
        self._waiting.take()
        self.metrics.reset()
        self.loss.reset()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def update(self, module: Any, logits: Tensor, targets: Tensor, batch_idx: int, all_come: bool) -> None:
        """Adds a batch, logits ``(B, K)`` and targets, and logs loss and metrics with the first.

        Once is enough, as Lightning computes them at the end of the evaluation.

        Args:
            module: The module.
            logits: Its logits.
            targets: The targets.
            batch_idx: Which batch it is.
            all_come: Whether each batch of the loader comes here, and as what it is; else each is counted at once.
        """
        self._count(module, self._waiting.add(logits, targets))
        # Before callbacks look at the metrics, which they do before the module.
        if not (all_come and batch_idx + 1 < _num_batches(module, self.split) < math.inf):
            self._count(module, self._waiting.take())
        if batch_idx == 0:
            main = module.main_metric[0].removeprefix("val/")
            module.log(f"{self.split}/loss", self.loss, prog_bar=True, batch_size=len(targets))
            for name, metric in self.metrics.items(keep_base=True):
                module.log(f"{self.split}/{name}", metric, prog_bar=name == main, batch_size=len(targets))

    def _count(self, module: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for logits, targets in batches:
            module.task.update(self.metrics, logits, targets)
            self.loss.update(module.task.evaluation_loss(logits, targets).expand(len(targets)))

    def check(self, module: Any, losses: LossWatch) -> None:
        """Raises `UserError` in every process if the loss of an evaluation, or of training before, is not finite."""
        losses.look(module)
        trainer = module.trainer
        if trainer.sanity_checking or trainer.fast_dev_run:
            return  # batch norm has not yet settled after so few steps
        if not trainer.strategy.reduce_boolean_decision(self.loss.update_called, all=False):
            return
        if not bool(self.loss.compute().isfinite()):
            step = module.global_step if trainer.state.fn == "fit" else None
            raise build_divergence_error(module, f"{self.split}/loss", step, losses.largest)
        if self.split not in losses.warned_splits:
            losses.warned_splits.add(self.split)
            warn_absent_classes(self.metrics, self.split, module.class_names)


def _num_batches(module: Any, split: str) -> float:
    """How many batches an evaluation has; infinite where that is not known for sure."""
    trainer = attached_trainer(module)
    if trainer is None:
        return math.inf
    loader = trainer.val_dataloaders if split == "val" else trainer.test_dataloaders
    if not isinstance(loader, Loader):  # those of others may give another number than they tell
        return math.inf
    if trainer.sanity_checking:
        return float(min(trainer.num_sanity_val_batches))
    return float(min(trainer.num_val_batches if split == "val" else trainer.num_test_batches))


class TrainScore:
    """The main metric of a task over the training batches of an epoch, each as the network was when it saw it."""

    def __init__(self, task: Task, device: torch.device) -> None:
        name = MAIN_METRIC[task.name][0].removeprefix("val/")
        self._name, self._task = f"train/{name}", task
        self._metrics = MetricCollection({self._name: task.metrics("")[name]}, compute_groups=False).to(device)
        # Sums of floats would depend on where a run was interrupted.
        self._waiting = _Waiting(0 if task.name == "regression" else _WAITING_VALUES)
        self.reset()

    def reset(self) -> None:
        """Begins an epoch."""
        self._waiting.take()
        self._is_empty = True
        self._metrics.reset()

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Adds a batch, logits ``(B, K)`` and targets."""
        self._is_empty = False
        self._count(self._waiting.add(logits, targets))

    def compute(self) -> dict[str, float]:
        """The metric of all processes, each of which must call it, by its name; nothing before the first batch."""
        if self._is_empty:
            return {}
        self._count(self._waiting.take())
        with warnings.catch_warnings():  # torchmetrics would warn of a state that was loaded, with no batch after it
            warnings.simplefilter("ignore", UserWarning)
            return {name: float(value) for name, value in self._metrics.compute().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What all processes have counted, each of which must call it."""
        if self._is_empty:
            return {}
        self._count(self._waiting.take())
        with self._metric().sync_context():
            return {name: value.detach().clone() for name, value in self._metric().metric_state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor], is_first: bool = True) -> None:
        """Goes on from there; the counts are those of the first process then, as the sum is over all."""
        self._is_empty = self._is_empty and not state
        for name, value in state.items() if is_first else ():
            setattr(self._metric(), name, value.to(self._metric().device))

    def _metric(self) -> Any:
        return self._metrics[self._name]

    def _count(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        for logits, targets in batches:
            self._task.update(self._metrics, logits, targets)


def refuse_unlogged(callbacks: Iterable[Any], logged: Mapping[str, str], task: str) -> None:
    """Raises `UserError` if a callback monitors a metric that the task logs for other numbers of classes alone."""
    others = {f"val/{name}" for name in METRICS[task]} - logged.keys()
    for callback in callbacks:
        if (monitor := getattr(callback, "monitor", None)) in others:
            raise unknown("metric", monitor, logged, f"{type(callback).__name__}.monitor")


def build_divergence_error(module: Any, name: str, step: int | None, stage: str | None) -> UserError:
    """The error for a loss that is not finite, in or after a step, counted from 0; None where nothing is trained.

    The stage is the one with the largest gradient before that, where it is known.
    """
    trainer, check_inputs = attached_trainer(module), "look for weights, images or targets that are not"
    if step is None:
        return UserError(f"{name} is not finite: {check_inputs}")
    rates = [group["lr"] for optimizer in getattr(trainer, "optimizers", ()) for group in optimizer.param_groups]
    where = [f"learning rate {rate:.3g}" for rate in sorted(rates)[-1:]]
    where += [f"largest gradient in {stage}"] if stage else []
    details = f" ({', '.join(where)})" if where else ""
    advice = "lower `model.lr`, or give `trainer.gradient_clip_val` 1" if step else check_inputs
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
            largest[stage] = whole(nn.utils.get_total_norm(gradients, norm_type=math.inf))
    if not largest:
        return None
    values = torch.stack(list(largest.values())).nan_to_num(nan=math.inf, posinf=math.inf).tolist()
    return max(zip(values, range(len(values)), largest, strict=True))[2]


def _world_size(module: Any) -> int:
    trainer = attached_trainer(module)
    return trainer.world_size if trainer else 1
