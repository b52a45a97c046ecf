"""Fine-tuning trials: how many images fit a budget, and whether unfreezing beat the linear probe on the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_ft.console import format_duration
from lit_ft.data.folds import make_folds
from lit_ft.data.split import hold_out, keep_fraction
from lit_ft.errors import UserError
from lit_ft.probes.findings.image_findings import GAIN
from lit_ft.probes.heads.solver import Targets
from lit_ft.probes.images import ProbeImages, join_copies
from lit_ft.probes.survey import EPOCH_PASSES

Verdict = Literal["fine-tune", "linear probe", "undecided"]

_LEAST_IMAGES = 40
"""Fewer images, half of them held out, decide nothing."""


_ENOUGH_STEPS = 0.5
"""Share of the steps of a whole run from which on fine-tuning can be found not to be worth it."""


@dataclass(frozen=True)
class TrialSize:
    """What a trial takes on.

    Args:
        num_images: Number of images, copies left out.
        num_folds: The folds that these are split into; the model of one is trained on all others.
        num_tried: The number of folds that a model is trained for.
        num_epochs: Epochs of each.
    """

    num_images: int
    num_folds: int
    num_tried: int
    num_epochs: int

    @property
    def num_passes(self) -> float:
        """Number of times that an image passes the network forward, or as long.

        A fold passes once for the features from which the head is solved. In each epoch the images to train on pass
        `EPOCH_PASSES` times, and those that are held out once.
        """
        epoch = (self.num_folds - 1) * EPOCH_PASSES + 1
        return self.num_tried * self.num_images / self.num_folds * (self.num_folds + self.num_epochs * epoch)


@dataclass(frozen=True)
class Costs:
    """What was measured of a backbone.

    Args:
        pass_seconds: Seconds in which an image passes the network.
        solver_seconds: Seconds in which a head is solved.
    """

    pass_seconds: float
    solver_seconds: float

    def predict(self, size: TrialSize) -> float:
        """Seconds of a trial."""
        return size.num_passes * self.pass_seconds + size.num_tried * self.solver_seconds


def plan_trial(
    num_images: int, num_folds: int, costs: Costs, budget: float, least_epochs: int, most_epochs: int
) -> TrialSize:
    """The trial that takes up a budget: first all images, then more folds, then more epochs.

    Half of the images are held out, as more to compare on decide more than more to train on; with time for all folds of
    the probe these are taken.

    Args:
        num_images: Number of images, copies left out.
        num_folds: Number of folds of the probe.
        costs: What the backbone costs.
        budget: Seconds.
        least_epochs: Epochs where not all images can be tried.
        most_epochs: Epochs of the config.

    Raises:
        UserError: If too few images fit.
    """
    for folds, tried in ((num_folds, num_folds), (2, 2), (2, 1)):
        for epochs in range(most_epochs, least_epochs - 1, -1):
            size = TrialSize(num_images, folds, tried, epochs)
            if costs.predict(size) <= budget:
                return size
    each, start = (costs.predict(TrialSize(num, 2, 1, least_epochs)) for num in (1, 0))
    fitting, least = max(0, int((budget - start) / (each - start))), min(num_images, _LEAST_IMAGES)
    if fitting < least:
        needed = math.ceil(costs.predict(TrialSize(least, 2, 1, least_epochs)))
        raise UserError(
            f"`budget`: {format_duration(budget)} suffices for {fitting} images, and {least} are needed; give at least "
            f"{needed}s"
        )
    return TrialSize(fitting, 2, 1, least_epochs)


def draw_images(images: ProbeImages, size: TrialSize, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The rows of a trial ``(n,)``, ascending, and the fold of each; copies are left out, and groups kept whole."""
    rows, groups = images.firsts, None
    if images.groups is not None:
        groups = join_copies(images.groups, images.copies)[rows]
    targets = images.targets.values[rows]
    if size.num_images < len(rows):
        if groups is None:
            drawn = keep_fraction(targets, size.num_images / len(rows), seed)
        else:
            _, drawn = hold_out(targets, size.num_images, seed, "`budget`", groups)
        rows, targets, groups = rows[drawn], targets[drawn], None if groups is None else groups[drawn]
    return rows, make_folds(targets, size.num_folds, 1, seed, groups)[0]


@dataclass(frozen=True)
class HeldOut:
    """Predictions for images that neither model has seen.

    Args:
        rows: The images ``(M,)``.
        targets: Their targets.
        probe: Logits of the linear probe ``(M, K)``.
        tuned: Logits of the fine-tuned model ``(M, K)``.
    """

    rows: Tensor
    targets: Targets
    probe: Tensor
    tuned: Tensor


@dataclass(frozen=True)
class Difference:
    """A figure of the linear probe and of the fine-tuned model, and the 95% interval of the second minus the first."""

    probe: float
    tuned: float
    interval: tuple[float, float]

    @property
    def change(self) -> float:
        """By how much fine-tuning raised it."""
        return self.tuned - self.probe


@dataclass(frozen=True)
class Comparison:
    """Score and loss of both models on the images that were held out."""

    score: Difference
    loss: Difference

    def judge(self, share: float) -> tuple[Verdict, str]:
        """What to do, and why: by the score, else by the loss, else by whether a gain of `GAIN` is possible.

        The first steps of a fine-tuning lead away from the optimum of the head. So one that is no better after few
        steps says nothing about a whole run.

        Args:
            share: Steps of the trial divided by those of a whole run.
        """
        low, high = self.score.interval
        lowest, highest = self.loss.interval
        reasons: tuple[tuple[bool, Verdict, str], ...] = (
            (low > 0, "fine-tune", "its score is higher on the same images"),
            (high < 0, "linear probe", "fine-tuning lowers the score on the same images"),
            (highest < 0, "fine-tune", "its loss is lower on the same images, and the score may be equal"),
            (lowest > 0, "linear probe", "fine-tuning raises the loss on the same images, and the score may be equal"),
            (high < GAIN, "linear probe", f"fine-tuning gains less than {100 * GAIN:.0f} point"),
        )
        undecided: tuple[Verdict, str] = ("undecided", "there are too few images to tell")
        verdict, reason = next(((verdict, reason) for applies, verdict, reason in reasons if applies), undecided)
        if verdict == "linear probe" and share < _ENOUGH_STEPS:
            return "undecided", f"{reason}, but after {share:.0%} of the steps of a whole run"
        return verdict, reason


@dataclass(frozen=True)
class Trial:
    """What a trial was, and what came of it.

    Args:
        backbone: The backbone.
        num_images: Number of images, copies left out.
        num_train: Number of images that a model was trained on.
        num_held_out: Number of images, of all folds, that the models were compared on.
        num_folds: Number of folds that a model was trained for.
        num_epochs: Epochs of each; where time was up, of the shortest.
        planned: What was planned.
        comparison: What came of it.
        verdict: What follows.
        reason: Why.
        budget: Seconds that it could take.
        predicted_seconds: Seconds that it was predicted to take.
        seconds: Seconds that it took.
        whole_seconds: Seconds that it was predicted to take with all images and epochs, half of the images held out.
    """

    backbone: str
    num_images: int
    num_train: int
    num_held_out: int
    num_folds: int
    num_epochs: float
    planned: TrialSize
    comparison: Comparison
    verdict: Verdict
    reason: str
    budget: float
    predicted_seconds: float
    seconds: float
    whole_seconds: float


def compare(parts: Sequence[HeldOut], images: ProbeImages) -> Comparison:
    """Compares both models on the images of all folds, each by each."""
    groups = torch.cat([part.rows for part in parts])
    if images.groups is not None:
        groups = join_copies(images.groups, images.copies)[groups]
    scores, losses = [], []
    for part in parts:
        logits = torch.stack([part.probe, part.tuned]).double()
        scores.append(part.targets.correct(logits))
        found, _ = part.targets.losses(logits.transpose(0, 1).contiguous(), slice(None))
        losses.append(found.T * part.targets.loss_scale)
    is_share = parts[0].targets.loss != "squared"
    return Comparison(_difference(torch.cat(scores, 1), groups, is_share), _difference(torch.cat(losses, 1), groups))


def _difference(values: Tensor, groups: Tensor, is_share: bool = False) -> Difference:
    probe, tuned = values.mean(dim=1).tolist()
    return Difference(probe, tuned, paired_interval(values[1] - values[0], groups, is_share))


def paired_interval(differences: Tensor, groups: Tensor, is_share: bool = False) -> tuple[float, float]:
    """The 95% interval of the mean of differences ``(M,)``; those of a group ``(M,)`` may depend on each other.

    To shares, one image is added that only the first model has right, and one that only the second has, so that few
    images on which both agree are not taken for certainty (Bonett and Price 2012, Adjusted Wald Confidence Interval for
    a Difference of Binomial Proportions Based on Paired Data).
    """
    from scipy.stats import t

    if is_share:
        differences = torch.cat([differences, torch.tensor([1.0, -1.0])])
        groups = torch.cat([groups, groups.max() + torch.tensor([1, 2])])
    _, group = torch.unique(groups, return_inverse=True)
    num_groups, mean = int(group.max()) + 1, float(differences.mean())
    if num_groups < 2:
        return -math.inf, math.inf
    sums = torch.zeros(num_groups, dtype=torch.float64).index_add_(0, group, differences.double() - mean)
    half = float(t.ppf(0.975, num_groups - 1) * sums.norm()) / len(differences)
    return mean - half, mean + half
