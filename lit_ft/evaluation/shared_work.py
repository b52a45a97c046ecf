"""Work that the processes of a launcher, such as torchrun or srun, share without a trainer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from lit_ft.errors import UserError

T = TypeVar("T")

_PATIENCE = timedelta(minutes=10)
"""How long a process waits for another one, to join it or to have the results of as many images."""


@dataclass(frozen=True)
class SharedWork:
    """One of the processes that do a piece of work together.

    Args:
        rank: Its number.
        size: How many there are.
        local_rank: Its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the one that reads and writes for all."""
        return self.rank == 0

    def device(self) -> str | None:
        """The accelerator of this process, where there are several processes; None leaves the choice."""
        if self.size == 1 or not torch.accelerator.is_available():
            return None
        kind = cast(torch.device, torch.accelerator.current_accelerator()).type
        return f"{kind}:{self.local_rank % torch.accelerator.device_count()}"

    def on_first(self, make: Callable[[], T]) -> T:
        """What a function gives on the first process, for all of them, which each must call this.

        Raises:
            UserError: If the function does, on the first process.
            SystemExit: On the others, which print nothing.
        """
        if self.size == 1:
            return make()
        found: list[Any] = [None]
        if self.is_first:
            try:
                found = [make()]
            except UserError as error:
                found = [error]
        with _answered():
            dist.broadcast_object_list(found, src=0)
        if isinstance(found[0], UserError):
            raise found[0] if self.is_first else SystemExit(2)
        return cast(T, found[0])

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """The things that are for this process: every so-manieth."""
        return things[self.rank :: self.size]

    def collect(self, own: list[T]) -> list[T]:
        """What all processes made of their shares, in the order of the whole; nothing but on the first one."""
        if self.size == 1:
            return own
        parts: list[Any] = [None] * self.size
        with _answered():
            dist.gather_object(own, parts if self.is_first else None)
        if not self.is_first:
            return []
        return [parts[row % self.size][row // self.size] for row in range(sum(map(len, parts)))]


@contextmanager
def _answered() -> Iterator[None]:
    """Raises `UserError` where another process is gone, as one that was killed for its memory."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"another of the launched processes is gone or does not answer ({reason}); start again"
        ) from error


@contextmanager
def join_launched() -> Iterator[SharedWork]:
    """Joins the processes that torchrun, srun or another launcher has started for this command; else there is one."""
    variables = os.environ
    if int(variables.get("WORLD_SIZE", 1)) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= variables.keys():
        rank, size = int(variables["RANK"]), int(variables["WORLD_SIZE"])
        own, place = SharedWork(rank, size, int(variables.get("LOCAL_RANK", 0))), "env://"
    elif int(variables.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # not in a batch script, whose job has several tasks
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment  # slow to load

        rank, size = int(variables["SLURM_PROCID"]), int(variables["SLURM_STEP_NUM_TASKS"])
        own = SharedWork(rank, size, int(variables.get("SLURM_LOCALID", 0)))
        first = SLURMEnvironment.resolve_root_node_address(variables["SLURM_STEP_NODELIST"])
        place = f"tcp://{first}:{15000 + int(variables['SLURM_JOB_ID']) % 10000}"  # as Lightning finds it
    else:
        yield SharedWork()
        return
    dist.init_process_group("gloo", place, _PATIENCE, own.size, own.rank)
    try:
        yield own
    finally:
        dist.destroy_process_group()
