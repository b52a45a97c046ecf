"""Callback that ends a fit by a signal: all processes at the same batch, with a checkpoint to resume from."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, WeightAveraging

from lit_ft.compat import collective_timeout, resumes_with_validation
from lit_ft.runs import Run, find_run
from lit_ft.training.signals import GRACE_SECONDS, Interrupted, SignalWatch


class EndByBatch(Callback):
    """Ends a fit after a signal, all processes at the same batch, and saves where it is.

    In a batch of training or validation a signal waits for the end of the batch, or of the optimizer step. Then all
    processes learn of it, whichever of them received it, save together, and end; in a SLURM job the signal that
    announces the end of its time requeues it. At any other moment the signal ends its process at once, as nothing was
    computed since the last checkpoint but what is computed again, such as features.

    Lightning saves within the handler of the signal, where other processes may be in another collective.

    Args:
        watch: Receives the signals.
        saves: Whether checkpoints are written.
    """

    def __init__(self, watch: SignalWatch, saves: bool) -> None:
        self._watch = watch
        self._saves = saves
        self.run: Run | None = None  # which not all processes know before
        self._group: Any = None
        self._asked: tuple[torch.Tensor, Any] | None = None  # of the other processes, a batch ago
        self._steps = 0
        self._val_batches = 0  # until which all processes have one

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes a group of its own, as the answer is awaited on the CPU."""
        self._asked = None
        self.run = find_run(trainer)
        self._watch.is_alone = trainer.world_size == 1
        if stage == "fit" and trainer.world_size > 1 and dist.is_initialized():  # not on TPUs
            self._group = dist.new_group(timeout=collective_timeout(trainer.strategy), backend="gloo")
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if isinstance(environment, SLURMEnvironment):
            self._watch.set_requeue(environment.requeue_signal if environment.auto_requeue else None)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Lets a signal wait."""
        self._watch.hold()
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the fit at the end of an optimizer step: gradients that are being accumulated are in no checkpoint."""
        if trainer.global_step != self._steps:
            self._end_if_asked(trainer, saves=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts the batches that all processes have."""
        self._val_batches = 0
        is_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        averages = any(isinstance(one, WeightAveraging) for one in trainer.callbacks)  # type: ignore[attr-defined]
        if is_fit and resumes_with_validation(trainer) and not averages:  # of which the model has the weights now
            least = torch.tensor(float(sum(trainer.num_val_batches)))
            if self._group is not None:
                dist.all_reduce(least, dist.ReduceOp.MIN, self._group)
            self._val_batches = int(least) if math.isfinite(least) else 0

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Ends the fit within a validation, which a resumed one begins with."""
        if self._val_batches > 0:
            self._val_batches -= 1
            self._end_if_asked(trainer, saves=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the fit between two epochs: the checkpoint of the last one is written."""
        self._between_epochs(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends what follows the fit likewise."""
        self._between_epochs(trainer)

    def _between_epochs(self, trainer: L.Trainer) -> None:
        self._end_if_asked(trainer, saves=False)
        self._wait(trainer, saves=False)
        self._watch.release()

    def _end_if_asked(self, trainer: L.Trainer, saves: bool) -> None:
        """Asks all processes for the signals that they have received, and ends after what they told a batch ago.

        So no batch waits for the answer.
        """
        self._wait(trainer, saves)
        self._watch.end_batch()
        received = self._watch.received or 0
        if self._group is None:
            self._end(trainer, received, saves)
        else:
            told = torch.tensor([received])
            self._asked = told, dist.all_reduce(told, dist.ReduceOp.MAX, self._group, async_op=True)

    def _wait(self, trainer: L.Trainer, saves: bool) -> None:
        if self._asked is not None:
            (told, work), self._asked = self._asked, None
            work.wait()
            self._end(trainer, int(told), saves)

    def _end(self, trainer: L.Trainer, number: int, saves: bool) -> None:
        if not number:
            return
        self._watch.give_time(None)
        if saves and self._saves and self.run is not None:
            trainer.save_checkpoint(self.run.last)
        self._watch.give_time(GRACE_SECONDS)
        raise Interrupted(number, None if trainer.is_global_zero else "")
