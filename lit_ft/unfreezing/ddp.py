"""Unfreezing under distributed data parallelism: equal replicas, equal phases, and a wrapper for each phase."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_ft.compat import rewrap_ddp


def broadcast_buffers(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Copies the buffers of rank 0 to every rank, as DDP does before a forward pass, so that replicas end equal."""
    if trainer.world_size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def check_ranks_agree(trainer: L.Trainer, index: int) -> None:
    """Checks that all ranks are in the phase of this index.

    Raises:
        RuntimeError: If they are not.
    """
    if trainer.world_size > 1:
        indices = [index] * trainer.world_size
        torch.distributed.all_gather_object(indices, index)
        if len(set(indices)) > 1:
            raise RuntimeError(
                f"the processes disagree on the phase of epoch {trainer.current_epoch}: {indices}; what ends a phase "
                "must be the same on all, as with self.log(..., sync_dist=True)"
            )


def rewrap(trainer: L.Trainer) -> None:
    """Wraps the model anew: DDP reduces only the gradients of parameters that were trainable when it wrapped."""
    if isinstance(trainer.strategy, DDPStrategy):
        rewrap_ddp(trainer.strategy)
