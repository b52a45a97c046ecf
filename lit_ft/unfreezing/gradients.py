"""Decides which stages a task asks to change: those with the largest gradients, relative to their weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torchmetrics import Metric

from lit_ft.backbones.freezing import Staged
from lit_ft.data.loading.loader import Loader


def choose(gradients: Mapping[str, float], threshold: float) -> tuple[str, ...]:
    """The stages whose relative gradient is at least a share of the largest one.

    >>> choose({"stem": 0.1, "layer1": 0.6, "layer2": 1.0}, threshold=0.5)
    ('layer1', 'layer2')
    """
    largest = max(gradients.values(), default=0.0)
    return tuple(stage for stage, value in gradients.items() if value >= threshold * largest)


def relative_gradients(trainer: L.Trainer, module: L.LightningModule, num_batches: int) -> dict[str, float]:
    """Of each stage but the head, the norm of the mean gradient of some batches, divided by that of the weights.

    As the relative gradient norm of Lee et al. 2022, `Surgical Fine-Tuning Improves Adaptation to Distribution Shifts
    <https://arxiv.org/abs/2210.11466>`_, there for each layer, here for each stage. It is measured in eval mode and in
    full precision, on the batches with which the epoch begins. Neither the module nor the order of the data is changed.

    Args:
        trainer: The trainer of a fit that goes on.
        module: Its head should be trained already, as the gradients behind a random one tell little.
        num_batches: The number of batches, in each process.
    """
    stages = cast(Staged, module).stage_modules()
    parameters = {name: list(nn.ModuleList(parts).parameters()) for name, parts in list(stages.items())[:-1]}
    parameters = {name: parts for name, parts in parameters.items() if parts}
    everything = [parameter for parts in parameters.values() for parameter in parts]
    totals = [torch.zeros_like(parameter) for parameter in everything]
    needed, training = [parameter.requires_grad for parameter in everything], module.training
    module.eval()
    for parameter in everything:
        parameter.requires_grad_(True)
    _mute(module)
    indexed = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    try:
        with isolate_rng(), _kept(trainer, module), torch.enable_grad():
            count = 0
            for index, batch in enumerate(islice(_batches(trainer), num_batches)):
                count += trainer.world_size
                given = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                result = module.training_step(given, index) if indexed else module.training_step(given)
                loss: Any = result["loss"] if isinstance(result, Mapping) else result
                for total, part in zip(totals, torch.autograd.grad(loss, everything, allow_unused=True), strict=True):
                    if part is not None:
                        total += part
    finally:
        _unmute(module)
        for parameter, needs in zip(everything, needed, strict=True):
            parameter.requires_grad_(needs)
        module.train(training)
    if trainer.world_size > 1:
        for total in totals:
            torch.distributed.all_reduce(total)
    sums = dict(zip(map(id, everything), totals, strict=True))
    return {name: _norm([sums[id(p)] for p in parts]) / count / _norm(parts) for name, parts in parameters.items()}


def _norm(tensors: list[Any]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def _batches(trainer: L.Trainer) -> Any:
    """The batches of the epoch, from a copy of the loader, as it remembers how far it got."""
    given: Any = trainer.train_dataloader
    loader = given.of_images() if isinstance(given, Loader) else copy.copy(given)
    sampler: Any = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(trainer.current_epoch)
    return iter(loader)


@contextmanager
def _kept(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Puts back what reading and training steps change beside weights: generators of the loader, and metrics."""
    loader: Any = trainer.train_dataloader
    owners = (loader, getattr(loader, "sampler", None))
    generators = [g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    metrics = {part: copy.deepcopy(vars(part)) for part in module.modules() if isinstance(part, Metric)}
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for metric, kept in metrics.items():
            vars(metric).update(kept)


def _mute(module: L.LightningModule) -> None:
    """Lets a training step log nothing: it is none of the run's."""
    vars(module)["log"] = vars(module)["log_dict"] = lambda *_, **__: None


def _unmute(module: L.LightningModule) -> None:
    del vars(module)["log"], vars(module)["log_dict"]
