"""`ImageModel`: a backbone with a head, and what it takes to predict with it; no Lightning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_ft.backbones import HEAD
from lit_ft.backbones.backbone import StageOutput
from lit_ft.backbones.build import NetworkName, Pool, build_backbone, input_spec
from lit_ft.backbones.freezing import Staged
from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.backbones.stem import Stem
from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.compat import attached_trainer
from lit_ft.errors import UserError
from lit_ft.model.calibration import Calibration
from lit_ft.model.checkpoint import all_hyperparameters
from lit_ft.model.first_batch import refuse_other_size, refuse_unprepared
from lit_ft.model.heads import HeadConfig, build_head
from lit_ft.model.prediction import Predictor
from lit_ft.model.preprocessing import Normalise
from lit_ft.tasks.classes import name_classes
from lit_ft.tasks.monitored import MAIN_METRIC, Mode
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task

_OF_TRAINING = ("penalty.",)
"""What the names of those tensors in a checkpoint begin with that only a training needs."""


class ImageModel(Staged, Predictor):
    """A backbone with a head, which predicts images: what `lit_ft.load` gives, and what a `FineTuneModule` trains.

    Images may come as uint8, and are then scaled and normalised here, or as float, and are then taken as they are; raw
    values of bands are always normalised.

    Args:
        backbone: Name of the network, or class_path, init_args, stages and classifier of your own.
        weights: A tag of its published weights, a file, or None for random ones.
        pool: From the last stage to the features.
        input: Where the images differ from what the backbone expects.
        stem: The network's own, or small.
        partial_weights: Whether to load what fits of the weights and warn of the rest, rather than refuse.
        weights_key: Where in a file with several state dicts the weights are.

    Raises:
        UserError: If a name, a file or a number is wrong.
    """

    hparams: Any
    """The options that it was made with, by name."""

    def __init__(
        self,
        backbone: NetworkName,
        weights: str | None = None,
        pool: Pool = "own",
        input: InputConfig = InputConfig(),  # noqa: B008 - never changed here
        stem: Stem = "own",
        partial_weights: bool = False,
        weights_key: str | None = None,
    ) -> None:
        super().__init__()
        self.asked_input = InputConfig.read(input)
        self.own_spec = spec = self.asked_input.applied_to(input_spec(backbone, weights))
        self.backbone = build_backbone(backbone, weights, pool, spec, stem, partial_weights, weights_key)
        self.backbone.to(memory_format=self.backbone.memory_format)
        self.normalise = Normalise.of(spec, self.backbone.memory_format)
        self.class_names: list[str] = []

    def build_for_classes(self, names: list[str]) -> None:
        """Builds a new head for classes, or the numbers of a regression, of these names."""
        if not names:
            raise UserError("classes: must be at least 1")
        self.class_names, task, head = names, self.hparams["task"], HeadConfig(**self.hparams["head"])
        self.head = build_head(self.backbone.num_features, len(names), head, task)
        self.task = Task(task, len(names), self.hparams["label_smoothing"])

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.normalise.mean.device

    @property
    def input_spec(self) -> InputSpec:
        """The images that the backbone expects, and how a photo is brought to them; data modules ask for it."""
        return self.backbone.spec

    def take_spec(self, spec: InputSpec) -> None:
        """Takes another way to bring photos to the same size, which the checkpoints then have."""
        self.backbone.spec = spec
        self.hparams["input"] = {**self.hparams["input"], "fit": spec.fit, "resize": spec.resize}

    @property
    def main_metric(self) -> tuple[str, Mode]:
        """The metric that chooses the best model, and whether its ``min`` or ``max`` is best."""
        return MAIN_METRIC[self.hparams["task"]]

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep, with the head last."""
        return {**self.backbone.stage_modules(), HEAD: [self.head]}

    def forward(self, images: Tensor | StageOutput) -> Tensor:
        """Images ``(B, C, H, W)``, uint8 or normalised float, or cached features -> logits ``(B, K)``."""
        if not self.training and attached_trainer(self) is None:  # what a loader gives is checked once
            refuse_unprepared(images, self.input_spec.size, self.normalise)
        given = images if isinstance(images, StageOutput) else self.normalise(images)
        try:
            logits: Tensor = self.head(self.backbone(given))
        except (RuntimeError, AssertionError) as error:  # by which torch, and networks with position embeddings, refuse
            refuse_other_size(given, self.input_spec.size, error)
            raise
        return logits

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes what a checkpoint has for predictions beside weights: classes, units, calibration, the fit of photos.

        Without a head it builds one for the classes.
        """
        hparams = all_hyperparameters(checkpoint)
        classes, images = hparams.get("classes"), InputConfig.read(hparams.get("input"))
        if not self.class_names and classes:  # a subclass's own constructor may not take them
            self.build_for_classes(name_classes(classes))
        units, known = checkpoint.get("standardisation"), checkpoint.get("calibration")
        if self.class_names:
            self.task = replace(self.task, standardisation=Standardisation.from_plain(units) if units else None)
        self.calibration = Calibration.from_plain(known) if known else None
        # Where the options did not say it: a subclass's own constructor may not take them, and the first release had
        # that images were seen as a whole elsewhere.
        if images.fit and (self.asked_input.fit is None or checkpoint.get("sees_whole_images")):
            spec = self.own_spec.with_channels_of(self.input_spec).with_fit(images.fit)
            is_same = images.size == spec.size
            self.take_spec(replace(spec, resize=images.resize or spec.resize) if is_same else spec)


def build_model(checkpoint: Mapping[str, Any]) -> ImageModel:
    """The model of a checkpoint, in eval mode; no code of the checkpoint runs, and no file of weights is opened.

    Raises:
        UserError: If the checkpoint names a network that is not of lit_ft, torch, torchvision or timm.
        RuntimeError: By torch, if weights are missing, more than the network has, or of another shape.
    """
    hparams = all_hyperparameters(checkpoint)
    refuse_foreign(hparams["backbone"], None)
    model = ImageModel(**{name: hparams[name] for name in ("backbone", "pool", "input", "stem")})
    model.hparams = hparams
    model.restore(checkpoint)
    state = checkpoint["state_dict"]
    model.load_state_dict({name: state[name] for name in state if not name.startswith(_OF_TRAINING)})
    return model.eval()
