"""What a model was fine-tuned from: the linear probe that its run began with, or the pretrained backbone alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.build import build_backbone, source_of
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.errors import UserError
from lit_ft.evaluation.inference import load
from lit_ft.model.checkpoint import hyper_parameters
from lit_ft.model.image_model import ImageModel
from lit_ft.runs import Run, find_best_checkpoint, find_run_of_checkpoint


@dataclass(frozen=True)
class Before:
    """A model before it was fine-tuned, as far as it is at hand.

    Args:
        probe: The linear probe on the pretrained backbone.
        backbone: That backbone, or the same from its published weights.
        reasons: Why one of these is not there.
    """

    probe: ImageModel | None
    backbone: Backbone | None
    reasons: list[str]

    @property
    def name(self) -> str:
        """What it is, for a page."""
        if self.probe is not None:
            return "the linear probe that the run began with"
        return "unknown" if self.backbone is None else "the pretrained backbone, without a head"


def find_before(checkpoint: str, model: ImageModel) -> Before:
    """What the model of a checkpoint, or of the folder of a run, was fine-tuned from.

    A run with a solved head keeps its linear probe. Else the published weights are read, where they are on this
    machine; nothing is fetched.
    """
    reasons: list[str] = []
    try:
        probe = _load_probe(checkpoint, model)
        return Before(probe, probe.backbone, reasons)
    except UserError as error:
        reasons.append(f"no map before fine-tuning: {error}")
    try:
        return Before(None, _read_backbone(checkpoint, model), reasons)
    except UserError as error:
        return Before(None, None, [*reasons, f"stages are not compared: {error}"])


def _load_probe(checkpoint: str, model: ImageModel) -> ImageModel:
    run = Run(Path(checkpoint)) if Path(checkpoint).is_dir() else find_run_of_checkpoint(checkpoint)
    if run is None:
        raise UserError(f"{checkpoint} is not in the folder of its run, which may have the linear probe")
    if not run.probe.is_file():
        raise UserError(f"the run has no {run.probe.name}, which one with a solved head keeps")
    if not Path(checkpoint).is_dir() and os.path.samefile(run.probe, checkpoint):
        raise UserError(f"{run.probe.name} is itself the linear probe")
    probe = load(run.probe, model.device)
    if (probe.class_names, probe.hparams["backbone"]) != (model.class_names, model.hparams["backbone"]):
        raise UserError(f"{run.probe} is of other classes or another backbone")
    return probe


def _read_backbone(checkpoint: str, model: ImageModel) -> Backbone:
    """The backbone with the weights that the run began with."""
    path = find_best_checkpoint(checkpoint)
    options = hyper_parameters(str(path), "explain", "")  # a model that was loaded does not know them any more
    name, weights = options["backbone"], options.get("source_weights")
    if weights is None:
        raise UserError("the run began with random weights, or does not say with which")
    is_here = Path(weights).expanduser().is_file()
    if not is_file_name(weights):
        tags = source_of(name).tags(str(name))
        is_here = weights in tags and tags[weights].local() is not None
    if not is_here:
        raise UserError(f"the weights {weights} that the run began with are not on this machine")
    defaults = {"stem": "own", "partial_weights": False, "weights_key": None}
    rest: list[Any] = [options.get(key, default) for key, default in defaults.items()]
    backbone = build_backbone(name, weights, options.get("pool", "own"), model.backbone.spec, *rest)
    return backbone.to(model.device).to(memory_format=backbone.memory_format).eval()
