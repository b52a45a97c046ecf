"""The solved head: a linear probe on the frozen backbone, from which a fit begins."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import Tensor, nn

from lit_ft.data.loading.protocols import Split
from lit_ft.data.loading.sampler import share
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.model.sharding import is_sharding
from lit_ft.probes.feature_pass import compute_stage_features
from lit_ft.probes.heads.linear_probe import LinearProbe, fit_linear_probe, refuse_equal, refuse_not_finite
from lit_ft.probes.heads.solver import LOSSES, Targets, weigh_classes


@dataclass
class SolvedHead:
    """How the head of a fit was solved, in plain values.

    Args:
        num_images: Number of training images.
        num_features: D, the number of their features.
        l2: Strength of the penalty.
        accuracy: Cross-validated accuracy and its 95% interval; empty for regression, or too few images.
        feature_seconds: Time in which the features of the training images were computed, in this run or before.
        solver_seconds: Time for cross-validation and solution.
        metrics: Validation metrics by name, with the solved head.
    """

    num_images: int
    num_features: int
    l2: float
    accuracy: list[float] = field(default_factory=list)
    feature_seconds: float = 0.0
    solver_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """A line for the terminal."""
        size = f"{self.num_images:,} x {self.num_features:,} features"
        times = f"features {self.feature_seconds:.1f} s, solver {self.solver_seconds:.1f} s"
        score = "{:.1%} ({:.1%} to {:.1%}) cross-validated; ".format(*self.accuracy) if self.accuracy else ""
        return f"Head  solved on {size}: {score}penalty {self.l2:.2g}; {times}"


def refuse_unsolvable(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Raises `UserError` if the head of a fit cannot be solved."""
    if obstacle := _find_obstacle(trainer, module):
        raise UserError(
            f"`unfreeze.head_fit`: solved {obstacle}; give trained, and a `model.lr` for a head that is new, such as "
            "1e-3"
        )


def is_solved_by_default(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether a fit whose head would first be trained alone solves it: where that gives what the training aims at."""
    if _find_obstacle(trainer, module):
        return False
    options, own = cast(FineTuneModule, module).hparams, cast(Any, trainer)
    limit = own.limit_train_batches
    is_short = own.fast_dev_run or own.overfit_batches or isinstance(limit, int) or limit < 1.0
    has_other_loss = options["label_smoothing"] or options["penalty"]["kind"] != "none"
    return not (is_short or has_other_loss)


def _find_obstacle(trainer: L.Trainer, module: L.LightningModule) -> str | None:
    """Why a head cannot be solved, if it cannot."""
    own = cast(Any, trainer)
    if not isinstance(module, FineTuneModule) or not isinstance(getattr(own, "datamodule", None), ImageDataModule):
        return "is for FineTuneModule and the data modules of lit_ft"
    if not isinstance(module.head[-1], nn.Linear) or any(isinstance(layer, nn.ReLU) for layer in module.head):
        return "is for a linear layer, without `model.head.hidden`"
    if is_sharding(trainer.strategy):
        return f"needs the whole head in each process, of which {type(trainer.strategy).__name__} gives a part"
    if module.objective.mix.is_on:
        return "takes images as they are, but `model.mix` changes them"
    if finders := [c for c in own.callbacks if isinstance(c, (BatchSizeFinder, LearningRateFinder))]:
        return f"comes after {type(finders[0]).__name__}, which would train with a head that is not solved yet"
    return None


def solve_head(trainer: L.Trainer, module: FineTuneModule) -> SolvedHead:
    """Sets the head to the linear probe of the training images.

    Each process computes the features of its share of the images, and the first one solves the head for all.

    Raises:
        UserError: If features are not finite, or equal for all images.
    """
    was_training = module.training
    module.eval()
    (features, seconds), (held_out, _) = (_share_features(trainer, module, split) for split in ("train", "val"))
    module.train(was_training)
    refuse_not_finite(features)  # in all processes, as the others would wait for the first
    refuse_equal(features)
    data = cast(Any, trainer).datamodule
    found: Any = _solve(module, data, features) if trainer.is_global_zero else None
    solved, weight, bias = trainer.strategy.broadcast(found)
    last = cast(nn.Linear, module.head[-1])
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)
    logits = held_out.double() @ weight.T + bias
    own = share(len(logits), trainer.global_rank, trainer.world_size)
    metrics = _evaluate(module, logits, data.splits["val"].targets, slice(own.start, own.stop))
    return replace(cast(SolvedHead, solved), feature_seconds=seconds, metrics=metrics)


def _share_features(trainer: L.Trainer, module: FineTuneModule, split: Split) -> tuple[Tensor, float]:
    """The features of a split ``(N, D)``, and the seconds that they took."""
    data = cast(Any, trainer).datamodule
    source = data.source(split, augment=False)
    rows = share(len(source), trainer.global_rank, trainer.world_size)
    found = compute_stage_features(
        module.backbone, module.normalise, source, data.batch_size, only_last=True, rows=rows
    )
    if trainer.world_size == 1:
        return found.last, found.seconds
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, (found.last, found.seconds))
    return torch.cat([features for features, _ in parts]), max(seconds for _, seconds in parts)


def _solve(module: FineTuneModule, data: Any, features: Tensor) -> tuple[SolvedHead, Tensor, Tensor]:
    images, began = data.splits["train"], time.perf_counter()
    targets, weights = _weigh(module, data, images.targets)
    probe = fit_linear_probe(features, targets, weights, getattr(images, "groups", None))
    seconds = time.perf_counter() - began
    solved = SolvedHead(len(features), features.shape[1], probe.l2, _accuracy(probe), solver_seconds=seconds)
    return solved, probe.weight, probe.bias


def _weigh(module: FineTuneModule, data: Any, given: Tensor) -> tuple[Targets, Tensor | None]:
    """The targets, and what each image counts, as in the training loss."""
    num, loss = module.task.num_outputs, LOSSES[module.task.name]
    if loss == "squared":
        standardised = module.task.standardisation.standardise(given) if module.task.standardisation else given
        return Targets(loss, standardised.reshape(len(given), num), num), None
    weight = None if module.objective.class_weight is None else module.objective.class_weight.cpu()
    return weigh_classes(Targets(loss, given, num), weight, data.sampling == "balanced")


def _accuracy(probe: LinearProbe) -> list[float]:
    validated = probe.validated
    if validated is None or validated.targets.loss == "squared":
        return []
    return [validated.accuracy, *validated.accuracy_interval()]


def _evaluate(module: FineTuneModule, logits: Tensor, targets: Tensor, own: slice) -> dict[str, float]:
    """The validation metrics of logits ``(N, K)``, as a validation logs them; each process adds its own images."""
    logits, targets = logits.to(module.device, torch.float32), targets.to(module.device)  # as collectives need them
    metrics = module.task.metrics("val/").to(module.device)
    module.task.update(metrics, logits[own], targets[own])
    values = {name: float(value) for name, value in metrics.compute().items()}
    return {"val/loss": float(module.task.evaluation_loss(logits, targets)), **values}
