"""What a run would be on a cluster: batch, learning rate, memory, traffic, data rate and time, phase by phase."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from textwrap import indent
from typing import Any, cast

import lightning as L
from torch import Tensor

from lit_ft.backbones.backbone import training_share
from lit_ft.console import format_bytes, format_duration, format_table
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.optim.effective_batch import EffectiveBatch
from lit_ft.training.step_cost import StepMemory, measure_memory, measure_seconds
from lit_ft.unfreezing.plan import Phase
from lit_ft.unfreezing.view import find_unfreezing, format_epoch_span, reduced_bytes, run_plan, stage_macs


@dataclass(frozen=True)
class Cluster:
    """Machines that a run is imagined on.

    Args:
        nodes: Number of machines.
        devices: Number of devices of each.
        precision: Precision of the arithmetic, as Lightning has it.
        bandwidth: GB/s at which a device sends gradients, the bus bandwidth of nccl-tests.
        step_seconds: Seconds of a forward and a backward pass of a batch on a device, when all stages of the last phase
            train; None measures it here.

    Raises:
        UserError: If a number is out of range.
    """

    nodes: int = 1
    devices: int = 1
    precision: str = "32-true"
    bandwidth: float = 10.0
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        for key, least in (("nodes", 1), ("devices", 1)):
            if getattr(self, key) < least:
                raise UserError(f"`{key}`: must be at least {least}, got {getattr(self, key)}")
        for key in ("bandwidth", "step_seconds"):
            value = getattr(self, key)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"`{key}`: must be above 0, got {value}")

    @property
    def processes(self) -> int:
        """Number of processes, one a device."""
        return self.nodes * self.devices

    def reduce_seconds(self, size: int) -> float:
        """Seconds in which a ring of all processes reduces gradients of so many bytes.

        Each device sends and receives ``2 (N - 1) / N`` of them (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce
        algorithms for clusters of workstations). Latency, and what overlaps with the backward pass, are left out.

        >>> Cluster(devices=2, bandwidth=1.0).reduce_seconds(4_000_000_000)
        4.0
        """
        return 2 * (self.processes - 1) / self.processes * size / (self.bandwidth * 1e9)


@dataclass(frozen=True)
class PhaseCost:
    """What a phase costs on a cluster.

    Args:
        phase: The phase.
        memory: Bytes on a device.
        reduced: Bytes that are reduced in each step.
        compute: Seconds of computation of a step.
        reducing: Seconds of its reduction.
    """

    phase: Phase
    memory: StepMemory
    reduced: int
    compute: float
    reducing: float

    @property
    def step(self) -> float:
        """Seconds of a step, in which nothing overlaps."""
        return self.compute + self.reducing


def format_scale(trainer: L.Trainer, module: L.LightningModule, cluster: Cluster) -> str:
    """The table of a run on a cluster.

    Args:
        trainer: The trainer of a plan, within a fit that is about to start.
        module: Its module.
        cluster: The machines.

    Raises:
        UserError: If the module or its data is none of lit_ft, or there are fewer images than processes.
    """
    data = cast(Any, trainer).datamodule
    if not isinstance(module, FineTuneModule) or not isinstance(data, ImageDataModule):
        raise UserError("`nodes`, `devices`: are for FineTuneModule and the data modules of lit_ft; leave them out")
    if run_plan(trainer, module).phases[-1].num_epochs == 0:
        return "Scale  the head is solved in one pass, and nothing is trained in steps"
    batch = replace(cast(EffectiveBatch, EffectiveBatch.of(trainer)), processes=cluster.processes)
    steps = _epoch_steps(trainer, data, cluster)
    costs = _phase_costs(trainer, module, batch, cluster)
    lines = [f"Scale  {cluster.nodes} x {cluster.devices} devices, ddp, {cluster.precision}; an estimate"]
    lines += [f"  batch          {batch}", f"  learning rate  {_format_rates(module.hparams['lr'], batch)}"]
    lines += [f"  epoch          {steps:,} steps", f"  data           {_format_data(data, batch, cluster, costs)}"]
    lines += [f"  time           {_format_time(costs, steps, cluster)}", ""]
    rows = [("phase", "epochs", "memory a device", "of it activations", "compute", "all-reduce", "step", "an epoch")]
    for number, cost in enumerate(costs, 1):
        times = (f"{cost.compute:.3g} s", f"{cost.reducing:.3g} s", f"{cost.step:.3g} s")
        sizes = format_bytes(cost.memory.total), format_bytes(cost.memory.activations)
        span = format_epoch_span(cost.phase.first_epoch, cost.phase.num_epochs)
        rows.append((str(number), span, *sizes, *times, format_duration(cost.step * steps)))
    return "\n".join([*lines, indent(format_table(rows), "  ")])


def _phase_costs(trainer: Any, module: FineTuneModule, batch: EffectiveBatch, cluster: Cluster) -> list[PhaseCost]:
    """The costs of the phases; afterwards the stages of the last one train."""
    plan, unfreezing = run_plan(trainer, module), find_unfreezing(trainer)
    frozen_norm, norm = (unfreezing.frozen_norm, unfreezing.norm) if unfreezing else ("eval", "train")
    macs = stage_macs(module)
    trained: dict[int, Tensor] = {}
    found = []
    for phase in plan.phases:
        module.set_trainable(phase.trainable, frozen_norm, norm)
        now = [parameter for parameter in module.parameters() if parameter.requires_grad]
        trained |= {id(parameter): parameter for parameter in now}
        memory = measure_memory(
            module, trainer.optimizers[0], batch.per_process, cluster.precision, cluster.processes > 1,
            list(trained.values()),
        )  # fmt: skip
        share = training_share(macs, [stage in phase.trainable for stage in plan.stages])
        found.append((phase, memory, reduced_bytes(now), share))
    seconds = cluster.step_seconds or measure_seconds(module, batch.per_process, cluster.precision)
    last = found[-1][-1]
    return [
        PhaseCost(phase, memory, size, batch.accumulated * seconds * share / last, cluster.reduce_seconds(size))
        for phase, memory, size, share in found
    ]


def _epoch_steps(trainer: Any, data: Any, cluster: Cluster) -> int:
    """Optimizer steps of an epoch on a cluster."""
    sampler = data.sampler(data.source("train", augment=False), training=True, world_size=cluster.processes)
    batches, limit = len(sampler), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return max(1, math.ceil(batches / int(trainer.accumulate_grad_batches)))


def _format_rates(lr: float, batch: EffectiveBatch) -> str:
    factor = batch.processes
    scaled = f"{lr * factor:.2g} by the linear rule (SGD), {lr * math.sqrt(factor):.2g} by the root (Adam)"
    return f"not scaled, model.lr {lr:g} as given; for {factor} times the images of a step: {scaled}"


def _format_data(data: Any, batch: EffectiveBatch, cluster: Cluster, costs: list[PhaseCost]) -> str:
    fastest = min(cost.step for cost in costs)
    images = cluster.devices * batch.per_process * batch.accumulated / fastest
    size = _mean_bytes(data)
    volume = "" if size is None else f", {images * size / 1e6:,.1f} MB/s of files"
    return f"{images:,.0f} images/s in each node{volume}, in the phase with the fastest step, without cached features"


def _mean_bytes(data: Any) -> float | None:
    """Mean size of some 256 files of the training images; None where these have no files of their own."""
    paths = getattr(data.splits["train"], "paths", None)
    if paths is None:
        return None
    every = max(1, len(paths) // 256)
    sizes: list[int] = [paths[row].stat().st_size for row in range(0, len(paths), every)]
    return sum(sizes) / len(sizes)


def _format_time(costs: list[PhaseCost], steps: int, cluster: Cluster) -> str:
    measured = "measured here" if cluster.step_seconds is None else "as given"
    epochs = [cost.phase.num_epochs for cost in costs]
    whole = sum(cost.step * steps * (num or 0) for cost, num in zip(costs, epochs, strict=True))
    total = "no end is known" if None in epochs else f"{format_duration(whole)} of training"
    return f"{total}; a device's step {measured}, all-reduce at {cluster.bandwidth:g} GB/s, without overlap"
