"""Survey of one backbone: how well linear heads on the features of each stage predict, and what the stages cost."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_ft.backbones.backbone import Backbone, StageCost, stage_costs
from lit_ft.backbones.build import NetworkName, build_backbone, input_spec
from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.console import log_progress
from lit_ft.data.files.derived_rows import join_rows
from lit_ft.model.input_bands import refuse_other_images
from lit_ft.model.preprocessing import Normalise
from lit_ft.probes.feature_pass import StageFeatures, compute_stage_features
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import CrossValidation, cross_validate
from lit_ft.probes.heads.linear_probe import refuse_equal, refuse_not_finite
from lit_ft.probes.heads.logme import logme
from lit_ft.probes.images import ProbeImages

EPOCH_PASSES = 3
"""Passes that an epoch of fine-tuning is predicted to take for each image: one forward, two as long backward."""

BUILT_BY: dict[str, Any] = {"input": None, "pool": "own", "stem": "own", "partial_weights": False, "weights_key": None}
"""Options of the model that say how its backbone is built, and their defaults."""

_LOGME_IMAGES = 3000
"""LogME is computed on so many images, evenly spaced, as its SVD takes a time that grows with their square."""


@dataclass(frozen=True)
class BackboneChoice:
    """A backbone that is to be probed.

    Args:
        name: The network.
        weights: A tag, a file, or ``None`` for random weights.
        options: Those of `BUILT_BY` that are given.
    """

    name: NetworkName
    weights: str | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The network's name, or the path of its class."""
        return self.name if isinstance(self.name, str) else str(self.name.get("class_path"))

    def build(self, images: InputSpec | None = None) -> Backbone:
        """The backbone in eval mode, its random weights being those of a run with the seed of this process.

        Args:
            images: Of raw values of bands, these and their mean and deviation.

        Raises:
            UserError: If it cannot be built.
        """
        given = {**BUILT_BY, **self.options}
        asked = InputConfig.read(given["input"])
        spec = asked.applied_to(input_spec(self.name, self.weights))
        if images is not None and images.bands is not None:
            refuse_other_images(asked, images)
            spec = spec.with_channels_of(images)
        rest = given["stem"], given["partial_weights"], given["weights_key"]
        with torch.random.fork_rng(devices=[]):  # else they would depend on what was built before
            torch.default_generator.manual_seed(torch.initial_seed())
            backbone = build_backbone(self.name, self.weights, given["pool"], spec, *rest)
        return backbone.to(memory_format=backbone.memory_format).eval()


@dataclass(frozen=True)
class StageProbe:
    """A linear head on the pooled output of a stage.

    Args:
        name: The stage.
        score: Mean out-of-fold score.
        difference: The score minus that of the last stage in the same folds.
        compute: Share of the backbone's arithmetic up to and with this stage.
        parameters: Number of parameters up to and with this stage.
    """

    name: str
    score: float
    difference: float
    compute: float
    parameters: int


@dataclass(frozen=True)
class BackboneProbe:
    """A linear head on the features of a backbone.

    Args:
        name: The backbone.
        weights: Its weights.
        score: Mean out-of-fold score: accuracy, for multilabel that of the labels, for regression R2.
        interval: The 95% interval of the score.
        loss: Mean out-of-fold loss, as ``val/loss`` of a training: cross-entropy, for multilabel the mean over labels,
            for regression the mean squared error of standardised numbers.
        l2: The penalty with the least loss.
        logme: LogME of the features as they are.
        num_features: D.
        parameters: Number of parameters.
        gflops: Multiplications with an addition for one image, in 1e9.
        feature_seconds: What the feature pass took, when it was made.
        epoch_seconds: Predicted time of an epoch of fine-tuning on the training images on this machine.
        solver_seconds: What all else took.
        stages: The stages, shallow to deep.
    """

    name: str
    weights: str | None
    score: float
    interval: tuple[float, float]
    loss: float
    l2: float
    logme: float
    num_features: int
    parameters: int
    gflops: float
    feature_seconds: float
    epoch_seconds: float
    solver_seconds: float
    stages: list[StageProbe]


@dataclass(frozen=True)
class Survey:
    """A backbone's probe, and the features and out-of-fold predictions behind it."""

    choice: BackboneChoice
    probe: BackboneProbe
    features: Tensor
    validated: CrossValidation


def survey_backbone(
    choice: BackboneChoice, images: ProbeImages, folds: Tensor, device: torch.device, all_stages: bool = True
) -> Survey:
    """Builds a backbone, computes its features in one pass, and cross-validates linear heads on them.

    Args:
        choice: The backbone.
        images: The images.
        folds: The fold of each image ``(R, N)``.
        device: Where to compute.
        all_stages: Whether heads on the stages before the last are measured, in the first repetition of the folds.

    Raises:
        UserError: If the backbone cannot be built, or its features tell nothing.
    """
    backbone = choice.build(images.data.measured_spec()).to(device)
    costs = stage_costs(backbone)
    found = pass_images(backbone, images)
    refuse_not_finite(found.last)
    refuse_equal(found.last)
    began = time.perf_counter()
    validated = cross_validate(Basis(found.last, device), images.targets, folds, images.weights)
    stages = measure_stages(found, costs, validated, device, images.weights) if all_stages else []
    step = -(-len(images) // _LOGME_IMAGES)
    rest: dict[str, Any] = {
        "logme": logme(found.last[::step], images.targets.values[::step]),
        "num_features": found.last.shape[1],
        "parameters": sum(cost.parameters for cost in costs),
        "gflops": sum(cost.macs for cost in costs) / 1e9,
        "feature_seconds": found.seconds,
        "epoch_seconds": EPOCH_PASSES * found.seconds * len(images.splits["train"]) / len(images),
        "solver_seconds": time.perf_counter() - began,
    }
    score, l2 = validated.accuracy, float(validated.strengths[validated.best])
    probe = BackboneProbe(
        choice.title, choice.weights, score, validated.accuracy_interval(), validated.loss, l2, stages=stages, **rest
    )
    return Survey(choice, probe, found.last, validated)


def pass_images(backbone: Backbone, images: ProbeImages) -> StageFeatures:
    """The features of all images, from a pass for each split, in the eval view of the backbone."""
    data, spec = images.data, backbone.spec
    data.take_spec(spec)
    normalise = Normalise.of(spec, backbone.memory_format)
    normalise.to(next(backbone.parameters()).device)
    parts = [
        compute_stage_features(backbone, normalise, data.source(split, augment=False), data.batch_size)
        for split in images.splits
    ]
    stages = {name: join_rows([part.stages[name] for part in parts]) for name in backbone.stages}
    return StageFeatures(stages, sum(part.seconds for part in parts))


def measure_stages(
    found: StageFeatures,
    costs: list[StageCost],
    last: CrossValidation,
    device: torch.device,
    weights: Tensor | None = None,
) -> list[StageProbe]:
    """Cross-validates each stage in the first repetition of the folds of the last one.

    Args:
        found: Features of the stages.
        costs: Their costs.
        last: The cross-validation of the last stage.
        device: Where to compute.
        weights: What each image counts ``(N,)``.
    """
    folds = last.folds[:1]
    reference = float(last.correct[:1][folds >= 0].mean())
    scores: list[float] = []

    def measure() -> Iterator[int]:
        for features in list(found.stages.values())[:-1]:
            scores.append(cross_validate(Basis(features, device), last.targets, folds, weights).accuracy)
            yield 1

    log_progress("Stages", measure(), len(costs) - 1, unit="stages")
    macs = list(itertools.accumulate(cost.macs for cost in costs))
    parameters = itertools.accumulate(cost.parameters for cost in costs)
    return [
        StageProbe(cost.name, score, score - reference, up_to / max(1, macs[-1]), number)
        for cost, score, up_to, number in zip(costs, [*scores, reference], macs, parameters, strict=True)
    ]
