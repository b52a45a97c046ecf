"""A probe: backbones that are measured on the same folds, and what the features of the best one tell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_ft.console import rank_zero_print
from lit_ft.errors import UserError, for_command_line
from lit_ft.own_code import UserCodeError
from lit_ft.probes.findings.image_findings import Findings, find
from lit_ft.probes.heads.cross_validation import corrected_interval
from lit_ft.probes.heads.solver import Loss
from lit_ft.probes.images import FOLDS, ProbeImages
from lit_ft.probes.survey import BackboneChoice, BackboneProbe, Survey, survey_backbone
from lit_ft.probes.trial import Trial

METRIC: dict[Loss, str] = {"softmax": "accuracy", "sigmoid": "label accuracy", "squared": "R2"}
"""What the score of each loss is."""


@dataclass(frozen=True)
class Lead:
    """By how much the best backbone is better than another one in the same folds.

    Args:
        name: The other one.
        difference: Mean difference of their scores.
        interval: Its 95% interval.
    """

    name: str
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Probe:
    """What was probed, and what was found.

    Args:
        data: Name of the data module.
        metric: What the scores are.
        sizes: Number of images by split.
        class_names: Names of the classes, labels or numbers.
        num_folds: Number of folds.
        repeats: How often the images were split into folds.
        backbones: The backbones, the best first.
        leads: By how much the best one leads each other one.
        failed: Why the others could not be used, by name.
        findings: What the features of the best backbone tell.
        notes: What to know about the figures.
        seconds: What all of it took; cached features are not counted.
        trial: Whether fine-tuning the best backbone is worth it, if that was tried.
    """

    data: str
    metric: str
    sizes: dict[str, int]
    class_names: list[str]
    num_folds: int
    repeats: int
    backbones: list[BackboneProbe]
    leads: list[Lead]
    failed: dict[str, str]
    findings: Findings
    notes: list[str]
    seconds: float
    trial: Trial | None = None

    @property
    def best(self) -> BackboneProbe:
        """The backbone with the highest score."""
        return self.backbones[0]


def probe_images(
    choices: Sequence[BackboneChoice], images: ProbeImages, device: torch.device, all_stages: bool = True
) -> tuple[Probe, BackboneChoice]:
    """Measures each backbone, and asks the features of the best one everything.

    Returns:
        What was found, and the best backbone.

    Raises:
        UserError: If no backbone can be used, or there are too few images.
    """
    began, folds = time.perf_counter(), images.fold()
    failed: dict[str, str] = {}
    best, probes, accuracies = None, [], {}
    for survey in _survey_each(choices, images, folds, failed, device, all_stages):
        probes.append(survey.probe)
        accuracies[survey.probe.name] = survey.validated.fold_accuracies
        if best is None or survey.probe.score > best.probe.score:  # only its features stay in memory
            best = survey
    if best is None:
        raise UserError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    probes.sort(key=lambda probe: -probe.score)
    rank_zero_print(f"Images and labels, by the features of {best.probe.name}")
    findings = find(best, images, device)
    probe = Probe(
        data=type(images.data).__name__,
        metric=METRIC[images.targets.loss],
        sizes={str(name): len(split) for name, split in images.splits.items()},
        class_names=list(images.data.class_names),
        num_folds=int(folds.max()) + 1,
        repeats=images.repeats,
        backbones=probes,
        leads=[_lead(best, probe.name, accuracies) for probe in probes[1:]],
        failed=failed,
        findings=findings,
        notes=_notes(images, folds, len(probes)),
        seconds=time.perf_counter() - began,
    )
    return probe, best.choice


def _survey_each(
    choices: Sequence[BackboneChoice], images: ProbeImages, folds: Tensor, failed: dict[str, str], *options: Any
) -> Iterator[Survey]:
    """Surveys each backbone, and adds those that cannot be used, and why, to ``failed``."""
    for choice in choices:
        rank_zero_print(f"Probing {choice.title}")
        try:
            survey = survey_backbone(choice, images, folds, *options)
        except UserCodeError:  # of the images, say, and not of one backbone
            raise
        except UserError as error:
            failed[choice.title] = for_command_line(error.args[0])
        else:
            yield survey


def _lead(best: Survey, name: str, accuracies: dict[str, Tensor]) -> Lead:
    differences = accuracies[best.probe.name] - accuracies[name]
    interval = corrected_interval(differences, 1 / int(best.validated.folds.max()))
    return Lead(name, float(differences.mean()), interval)


def _notes(images: ProbeImages, folds: Tensor, num_backbones: int) -> list[str]:
    notes = ["scores are of images that the head has not seen; only its penalty was chosen by the same images"]
    if num_backbones > 1:
        notes.append("the first backbone was chosen by these scores, so that its own may be a little too good")
    num_folds, unseen = int(folds.max()) + 1, int((folds[0] < 0).sum())
    if num_folds < FOLDS:
        too_few = "groups" if images.groups is not None else "images of a class, copies left out"
        notes.append(f"{num_folds} folds instead of {FOLDS}, as there are too few {too_few}")
    if few := images.classes_in_few_groups(num_folds):
        notes.append(f"fewer groups than folds have images of {', '.join(few)}, so that some folds have none")
    if unseen:
        alone = "without another one of their class" if images.groups is None else "of groups with all of a class"
        notes.append(f"{unseen} image(s) {alone} are never held out")
    return notes
