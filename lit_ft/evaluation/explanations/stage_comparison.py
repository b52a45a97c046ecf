"""Comparison of the stages of a model before and after fine-tuning, on images that it was not trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_ft.backbones import HEAD
from lit_ft.backbones.backbone import Backbone
from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.folds import make_folds
from lit_ft.data.loading.photo_source import PhotoSource
from lit_ft.data.loading.protocols import ImageSource, Split
from lit_ft.data.modules.arrays import ArrayDataModule
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.errors import UserError
from lit_ft.evaluation.explanations.before import Before
from lit_ft.evaluation.explanations.transfer import (
    FEWEST,
    StageChange,
    Stages,
    Transfer,
    measure_cka,
    measure_drift,
    probe_stages,
)
from lit_ft.model.heads import divide_logits
from lit_ft.model.image_model import ImageModel
from lit_ft.probes.feature_pass import compute_stage_features
from lit_ft.probes.heads.solver import Targets
from lit_ft.probes.images import read_targets

MOST = 1000
"""Number of images that are compared at most."""

_TRAINED_ON = (
    "the model was trained on the validation images, too, by its refit, and there are no test images; the best_epoch "
    "checkpoint beside it, where there is one, was not"
)


@dataclass(frozen=True)
class ComparedImages:
    """The images on which stages are compared.

    Args:
        source: The images, as in validation.
        title: What they are.
        targets: What heads are to predict, or why that is not asked for.
        groups: The group of each image ``(N,)``, where groups are known.
    """

    source: ImageSource
    title: str
    targets: Targets | str
    groups: Tensor | None


def choose_images(data: Any, model: ImageModel, is_refitted: bool) -> ComparedImages:
    """The validation images of a data module, or where the model was trained on them the test images, if there are any.

    Of more than `MOST` images so many are taken, evenly spaced.

    Args:
        data: The data module of the run.
        model: The model.
        is_refitted: Whether it was trained on the validation images, too.

    Raises:
        UserError: If the data is of another kind or other classes, or its images cannot be read.
    """
    if not isinstance(data, PhotoDataModule | ArrayDataModule):
        raise UserError(f"{type(data).__name__} is read as a stream")
    if list(data.class_names) != model.class_names:
        raise UserError("the data has other classes by now")
    data.read()
    split: Split = "test" if is_refitted and "test" in data.splits else "val"
    data.setup("test" if split == "test" else "validate")
    data.take_spec(model.input_spec)
    images: Any = data.splits[split]
    rows = torch.linspace(0, len(images) - 1, min(MOST, len(images))).round().long()
    part = images.part(rows)
    few = data.with_splits({split: part})
    targets: Targets | str = _TRAINED_ON
    if split == "test" or not is_refitted:
        targets = read_targets(data, part.targets)
    title = f"{len(part):,} {'test' if split == 'test' else 'validation'} images"
    title += f" of {len(images):,}" if len(part) < len(images) else ""
    return ComparedImages(few.source(split, augment=False), title, targets, getattr(part, "groups", None))


def gather_photos(paths: Sequence[str], model: ImageModel, reason: str) -> ComparedImages:
    """Photos without targets, for want of the images of a run, for which there is a reason."""
    files = FileSplit(PackedPaths.pack("", [Path(path) for path in paths]), torch.arange(len(paths)))
    source = PhotoSource(files, model.input_spec.geometry(), reader=model.reader)
    return ComparedImages(source, f"{len(paths):,} given photos", reason, None)


def compare_stages(before: Before, after: ImageModel, images: ComparedImages | str) -> Transfer:
    """Measures what fine-tuning changed in each stage, as far as that can be known.

    Args:
        before: The model before fine-tuning.
        after: The model after it.
        images: The images, or why there are none.

    Raises:
        UserError: If an image cannot be read.
    """
    notes, found = [*before.reasons], dict[str, Mapping[str, float]]()
    if before.backbone is not None:
        drifts = measure_drift((before.probe or before.backbone).stage_modules(), _uncalibrated(after))
        # What is left of a temperature that was taken out is rounding, which would be drawn as if it were a change.
        found["drift"] = {name: round(drift, 6) for name, drift in drifts.items()}
        if not any(found["drift"][name] for name in before.backbone.stages):
            notes.append("no weight of the backbone has changed: what was handed back is a linear probe")
    if isinstance(images, str):
        what = "stages are not probed" if before.backbone is None else "features are not compared"
        return _join(after, found, Transfer([], notes=[*notes, f"{what}: {images}"]))
    backbones = {"after": after.backbone} | ({"before": before.backbone} if before.backbone else {})
    features = {name: _pass(backbone, after, images) for name, backbone in backbones.items()}
    if not all(values.isfinite().all() for stages in features.values() for values in stages.values()):
        return _join(after, found, Transfer([], notes=[*notes, "features are not compared: some are not finite"]))
    if len(images.source) < FEWEST:
        notes.append(f"features are not compared: {len(images.source)} images are too few")
    elif "before" in features:
        found["cka"] = measure_cka(features["before"], features["after"])
    folds = _fold(images)
    if isinstance(folds, str):
        notes.append(f"stages are not probed: {folds}")
        return _join(after, found, Transfer([], images.title, notes=notes))
    targets: Any = images.targets
    found |= {name: probe_stages(features[name], targets, folds, name) for name in features}
    return _join(after, found, Transfer([], images.title, "R2" if targets.loss == "squared" else "accuracy", notes))


def _uncalibrated(model: ImageModel) -> Stages:
    """The modules of each stage, with the head as it was before its logits were divided by a temperature."""
    stages = model.stage_modules()
    if model.calibration is not None:
        stages[HEAD] = [head := copy.deepcopy(model.head)]
        divide_logits(head, 1 / model.calibration.temperature)
    return stages


def _join(after: ImageModel, found: Mapping[str, Mapping[str, float]], rest: Transfer) -> Transfer:
    """All that was found, by stage."""
    names = [*after.backbone.stages, *([HEAD] if HEAD in found.get("drift", {}) else [])]
    stages = [StageChange(name, **{key: values.get(name, math.nan) for key, values in found.items()}) for name in names]
    return Transfer(stages, rest.images, rest.score, rest.notes)


def _pass(backbone: Backbone, model: ImageModel, images: ComparedImages) -> dict[str, Tensor]:
    found = compute_stage_features(backbone, model.normalise, images.source)
    return found.stages


def _fold(images: ComparedImages) -> Tensor | str:
    """The folds in which heads are cross-validated ``(R, N)``, or why they cannot be."""
    if isinstance(images.targets, str):
        return images.targets
    try:
        return make_folds(images.targets.values, repeats=2, groups=images.groups)
    except ValueError as error:
        return str(error)


def describe(transfer: Transfer) -> Sequence[tuple[str, ...]]:
    """The stages as rows of a table, its head first, without columns of what is not known."""
    columns = {
        "drift": [stage.drift for stage in transfer.stages],
        "CKA": [stage.cka for stage in transfer.stages],
        f"{transfer.score} before": [stage.before for stage in transfer.stages],
        f"{transfer.score} after": [stage.after for stage in transfer.stages],
    }
    known = {name: values for name, values in columns.items() if any(map(math.isfinite, values))}
    rows = [
        (stage.name, *("" if math.isnan(values[i]) else f"{values[i]:.3f}" for values in known.values()))
        for i, stage in enumerate(transfer.stages)
    ]
    return [("stage", *known), *rows] if known else []
