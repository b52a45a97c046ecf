"""Gradients of stages, relative to their weights: what a task asks to change."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics import Metric

from lit_ft.backbones.freezing import Staged, select_parameters
from lit_ft.data.loading.loader import Loader


def relative_gradients(trainer: L.Trainer, module: L.LightningModule, num_batches: int) -> dict[str, float]:
    """Norm of the mean gradient of some batches by that of the weights, for each stage but the head.

    The relative gradient norm of Lee et al. 2022, `Surgical Fine-Tuning Improves Adaptation to Distribution Shifts
    <https://arxiv.org/abs/2210.11466>`_, there of each layer, here of each stage. It is measured in eval mode and in
    full precision, on the first batches of the epoch. Neither the module nor the order of the data is changed.

    Args:
        trainer: The trainer of a fit, within an epoch.
        module: Its head should be trained already, as gradients behind a random one say little.
        num_batches: The number of batches, in each process.
    """
    stages = cast(Staged, module).stage_modules()
    selected = select_parameters(stages, dict.fromkeys(list(stages)[:-1], "all"))
    parameters = {name: own for name, own in selected.items() if own}
    everything = [parameter for own in parameters.values() for parameter in own]
    with _measuring(trainer, module, everything):
        totals, count = _summed_gradients(trainer, module, everything, num_batches)
    if trainer.world_size > 1:
        for total in totals:
            torch.distributed.all_reduce(total)
    sums = dict(zip(map(id, everything), totals, strict=True))
    return {name: _norm([sums[id(p)] for p in own]) / count / _norm(own) for name, own in parameters.items()}


def _summed_gradients(
    trainer: L.Trainer, module: L.LightningModule, parameters: Sequence[nn.Parameter], num_batches: int
) -> tuple[list[Tensor], int]:
    """The sums of the gradients of some batches, and the number of batches of all processes."""
    totals, count = [torch.zeros_like(parameter) for parameter in parameters], 0
    kinds = [parameter.kind for parameter in inspect.signature(module.training_step).parameters.values()]
    # Lightning lets a step choose whether it takes the index of a batch.
    takes_index = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) > 1 or inspect.Parameter.VAR_POSITIONAL in kinds
    given: Any = trainer.train_dataloader
    loader = given.of_images() if isinstance(given, Loader) else copy.copy(given)  # a loader remembers its position
    sampler: Any = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(trainer.current_epoch)
    for index, batch in enumerate(islice(loader, num_batches)):
        count += trainer.world_size
        batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
        result = module.training_step(batch, index) if takes_index else module.training_step(batch)
        loss: Any = result["loss"] if isinstance(result, Mapping) else result
        for total, part in zip(totals, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if part is not None:
                total += part
    return totals, count


@contextmanager
def _measuring(trainer: L.Trainer, module: L.LightningModule, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lets some parameters have gradients, in eval mode and without logging.

    Restores all that this and training steps change: also the generators of the loader, and metrics.
    """
    loader: Any = trainer.train_dataloader
    owners = (loader, getattr(loader, "sampler", None))
    generators = [g for g in (getattr(owner, "generator", None) for owner in owners) if isinstance(g, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    metrics = {part: copy.deepcopy(vars(part)) for part in module.modules() if isinstance(part, Metric)}
    needed, training = [parameter.requires_grad for parameter in parameters], module.training
    module.eval()
    for parameter in parameters:
        parameter.requires_grad_(True)
    vars(module)["log"] = vars(module)["log_dict"] = lambda *_, **__: None  # these steps are none of the run's
    try:
        with isolate_rng(), torch.enable_grad():
            yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for metric, kept in metrics.items():
            vars(metric).update(kept)
        del vars(module)["log"], vars(module)["log_dict"]
        for parameter, needs in zip(parameters, needed, strict=True):
            parameter.requires_grad_(needs)
        module.train(training)


def _norm(tensors: list[Any]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))
