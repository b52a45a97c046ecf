"""A network that ends at an earlier stage, with a new head that is solved on the features of that stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_ft.backbones.backbone import Backbone, stage_costs
from lit_ft.errors import unknown
from lit_ft.export.inference_model import NetworkParts
from lit_ft.model.calibration import Calibration, fit_label_sets
from lit_ft.model.image_model import ImageModel
from lit_ft.probes.feature_pass import StageFeatures, average_places, compute_stage_features
from lit_ft.probes.heads.linear_probe import LinearProbe, fit_linear_probe, refuse_equal
from lit_ft.probes.heads.solver import LOSSES, Targets, weigh_classes
from lit_ft.tasks.classes import balanced_weights


class FirstStages(nn.Module):
    """The first stages of a backbone, up to one: normalised images -> features ``(B, D)``.

    The output of the last of these stages is averaged over all places, as `lit-ft probe` does, or goes through the
    backbone's own pooling if it is the last of all.
    """

    def __init__(self, backbone: Backbone, stage: str) -> None:
        super().__init__()
        names = list(backbone.stages)
        self.stages = nn.ModuleList(backbone.stages[name] for name in names[: names.index(stage) + 1])
        self.pool = backbone.pool if stage == names[-1] else None

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images ``(B, C, H, W)`` -> features ``(B, D)``."""
        for stage in self.stages:
            images = stage(images)
        return average_places(images) if self.pool is None else cast(Tensor, self.pool(images))


@dataclass(frozen=True)
class Truncated:
    """A network that was cut, and what that costs and gains.

    Args:
        parts: The network, calibrated as a whole one is, but for the temperature.
        metric: The metric that is compared.
        before: Of the whole network on the validation images.
        after: Of the one that was cut.
        compute: The share of the multiplications that is left.
        parameters: The share of the backbone's parameters that is left.
    """

    parts: NetworkParts
    metric: str
    before: float
    after: float
    compute: float
    parameters: float

    def __str__(self) -> str:
        """A line for the terminal."""
        left = f"{self.compute:.0%} of the compute and {self.parameters:.0%} of the parameters are left"
        return f"{self.metric} {self.before:.4f} before, {self.after:.4f} now; {left}"


def refuse_stage(module: ImageModel, stage: str, key: str) -> None:
    """Raises `UserError`, which names an option, for a stage that the backbone has not."""
    if stage not in module.backbone.stages:
        raise unknown("stage", stage, list(module.backbone.stages), key)


def truncate(module: ImageModel, data: Any, stage: str) -> Truncated:
    """Cuts a network after a stage, and solves a new head on the features of the training images there.

    Args:
        module: The model, in eval mode.
        data: The data module, set up, whose images are those that the model was trained on.
        stage: The last stage to keep.
    """
    train, val = (_compute(module, data, split) for split in ("train", "val"))
    features = train.stages[stage]
    refuse_equal(features)
    targets, weights = _weigh(module, data)
    probe = fit_linear_probe(features, targets, weights, getattr(data.splits["train"], "groups", None))
    truth = data.splits["val"].targets
    with torch.inference_mode():
        logits = module.head(val.last), probe(val.stages[stage].float())
    known = _calibrate(module, logits[1], truth, val.stages[stage])
    metric = module.main_metric[0].removeprefix("val/")
    before, after = (_measure(module, one, truth, metric) for one in logits)
    costs = stage_costs(module.backbone)
    kept = costs[: [cost.name for cost in costs].index(stage) + 1]
    compute = sum(cost.macs for cost in kept) / max(1, sum(cost.macs for cost in costs))
    parameters = sum(cost.parameters for cost in kept) / max(1, sum(cost.parameters for cost in costs))
    parts = NetworkParts(FirstStages(module.backbone, stage).eval(), _make_head(probe), known)
    return Truncated(parts, f"val/{metric}", before, after, compute, parameters)


def _make_head(probe: LinearProbe) -> nn.Sequential:
    num_outputs, num_features = probe.weight.shape
    head = nn.Linear(num_features, num_outputs)
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    return nn.Sequential(head)


def _calibrate(module: ImageModel, logits: Tensor, targets: Tensor, features: Tensor) -> Calibration:
    """What the validation images tell of the predictions of the new head."""
    is_multiclass = module.task.name == "multiclass"
    least = fit_label_sets(module.task.predict(logits), targets) if is_multiclass else None
    return Calibration(least_probability=least).with_references(features)


def _compute(module: ImageModel, data: Any, split: str) -> StageFeatures:
    source = data.source(split, augment=False)
    return compute_stage_features(module.backbone, module.normalise, source, data.batch_size)


def _weigh(module: ImageModel, data: Any) -> tuple[Targets, Tensor | None]:
    """The targets of the training images, and what each image counts, as in the training."""
    task, given = module.task, data.splits["train"].targets
    if task.name == "regression":
        standardised = task.standardisation.standardise(given) if task.standardisation else given
        return Targets(LOSSES[task.name], standardised.reshape(len(given), -1), task.num_outputs), None
    is_weighted = module.hparams["class_weight"] is not None
    each = balanced_weights(task.name, data, data.class_names) if is_weighted else None
    return weigh_classes(Targets(LOSSES[task.name], given, task.num_outputs), each, data.sampling == "balanced")


def _measure(module: ImageModel, logits: Tensor, targets: Tensor, metric: str) -> float:
    if metric == "loss":
        return float(module.task.evaluation_loss(logits, targets))
    metrics = module.task.metrics("")
    module.task.update(metrics, logits, targets)
    return float(metrics.compute()[metric])
