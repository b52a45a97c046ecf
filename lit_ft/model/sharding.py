"""Strategies of a trainer: sharding of the stages of a model, and what is refused because it would go wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lit_ft.compat import compression_of, writes_parts
from lit_ft.errors import UserError
from lit_ft.rank_zero import rank_zero_warn

_ON_WEIGHTS = (WeightAveraging, StochasticWeightAveraging, BatchSizeFinder, LearningRateFinder)
"""Callbacks that copy or restore the weights of a process as if they were those of the model."""


def is_sharding(strategy: Any) -> bool:
    """Whether each process holds a part of each weight."""
    return isinstance(strategy, ModelParallelStrategy)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, in all of them; all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_stages(module: Any) -> None:
    """Shards each stage of a `FineTuneModule`, whose trainer has `ModelParallelStrategy`, over all processes.

    A stage is whole in a process only while it computes (FSDP2, torch's `fully_shard`). Each is a root of its own, as
    a frozen prefix also runs without the stages after it. Doing it again changes nothing.
    """
    mesh = module.device_mesh["data_parallel"]
    module.backbone.is_sharded = True
    for parts in module.stage_modules().values():
        for part in parts:
            if any(True for _ in part.parameters()) and not isinstance(part, FSDPModule):
                # torch 2.14 shards no weights whose channels lie together in memory.
                part.to(memory_format=torch.contiguous_format)
                fully_shard(part, mesh=mesh, reshard_after_forward=True)


def share_buffers(module: Any) -> None:
    """Gives all processes the buffers of the first, where weights are sharded; DDP does so in each forward pass.

    Else each would validate with statistics of batch norm of its own, and only those of the first are saved.
    """
    if is_sharding(module.trainer.strategy):
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def refuse_unsupported(given: Any) -> None:
    """Raises `UserError` for a strategy whose weights have no stages, by its name, its class path or itself."""
    path = given if isinstance(given, str) else getattr(given, "class_path", type(given).__name__)
    name = path.rpartition(".")[2]
    if name.lower().startswith(("fsdp", "deepspeed")):
        raise UserError(
            f"`trainer.strategy`: {name} is not supported; give ddp, or ModelParallelStrategy, which shards the "
            "weights of each stage"
        )


def refuse_strategy(trainer: Any, module: Any) -> None:
    """Raises `UserError` for a strategy with which a `FineTuneModule` cannot be trained, or would be wrongly.

    Args:
        trainer: The trainer, before its strategy is set up.
        module: The `FineTuneModule`.
    """
    strategy = trainer.strategy
    refuse_unsupported(strategy)
    if isinstance(strategy, DDPStrategy):
        refuse_local_steps(strategy)
        if compression_of(strategy)[0] is not None and strategy.root_device.type != "cuda":
            rank_zero_warn("`trainer.strategy.ddp_comm_hook`: is used on GPUs alone; gradients are sent as they are")
    if is_sharding(strategy):
        _refuse_sharding(trainer, module)


def refuse_local_steps(strategy: DDPStrategy) -> None:
    """Raises `UserError` if processes take steps of their own, so that their weights differ."""
    if isinstance(compression_of(strategy)[1], PostLocalSGDState):
        raise UserError(
            "`trainer.strategy.ddp_comm_state`: PostLocalSGDState lets the weights of the processes differ between two "
            "averagings, also when they are validated, saved or frozen; leave it out"
        )


def _refuse_sharding(trainer: Any, module: Any) -> None:
    """Refuses what takes the part of a weight that a process holds for the whole."""
    strategy = trainer.strategy
    count = trainer.num_nodes * strategy.num_processes
    sizes = strategy.device_mesh["data_parallel"].size(), strategy.device_mesh["tensor_parallel"].size()
    if sizes != (count, 1):
        raise UserError(
            f"`trainer.strategy`: splits {count} processes into {sizes[0]} for data and {sizes[1]} for parts of a "
            f"layer, but each shall have images of its own; give `trainer.strategy.data_parallel_size` {count} and "
            "`trainer.strategy.tensor_parallel_size` 1"
        )
    if trainer.state.fn != "fit":
        return
    if trainer.checkpoint_callbacks and writes_parts(strategy):
        raise UserError(
            "`trainer.strategy.save_distributed_checkpoint`: true writes folders of parts, which lit_ft does not read; "
            "give false"
        )
    options = module.hparams
    chosen = {
        "model.penalty.kind": options["penalty"]["kind"] if module.penalty.is_on else None,
        "model.compile": "true" if options["compile"] else None,
        "model.gradient_checkpointing": "true" if options["gradient_checkpointing"] else None,
        "trainer.callbacks": next((type(c).__name__ for c in trainer.callbacks if isinstance(c, _ON_WEIGHTS)), None),
    }
    for option, value in chosen.items():
        if value is not None:
            raise UserError(f"`{option}`: {value} does not go with ModelParallelStrategy; leave it out, or give ddp")


def refuse_sharded_resume(trainer: Any, stages: Sequence[str], phases: Iterable[Sequence[str]]) -> None:
    """Raises `UserError` if a sharded run with frozen stages is resumed: Lightning would miss their optimizer states.

    Args:
        trainer: The trainer of a fit.
        stages: All stages.
        phases: The stages that train, phase by phase.
    """
    if is_sharding(trainer.strategy) and trainer.ckpt_path is not None and any({*stages} - {*own} for own in phases):
        raise UserError(
            "`ckpt_path`: a run with frozen stages is not resumed with ModelParallelStrategy; resume it with ddp, or "
            f"start from its weights with `model.weights` {trainer.ckpt_path}"
        )


def forget_buckets(state: Any) -> None:
    """Lets PowerSGD begin anew with the buckets of another wrapper, as when it began to compress.

    torch (2.8 to 2.14) keeps the errors and the factors of each bucket by its index alone. They would be added to the
    gradients of other parameters, or have another size. As DDP fills its buckets anew after its first step, two steps
    are not compressed.
    """
    if isinstance(state, PowerSGDState):
        state.iter = min(state.iter, max(0, state.start_powerSGD_iter - 2))
        for kept in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            kept.clear()
