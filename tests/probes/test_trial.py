"""Sizes of fine-tuning trials, their images, and the comparison with the linear probe."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from probe_sets import read_photos, write_photos
from scipy.stats import t

from lit_ft import DigitsDataModule
from lit_ft.errors import UserError
from lit_ft.probes.heads.solver import Targets
from lit_ft.probes.images import join_copies, read_images
from lit_ft.probes.trial import (
    Comparison,
    Costs,
    Difference,
    HeldOut,
    TrialSize,
    compare,
    draw_images,
    paired_interval,
    plan_trial,
)

COSTS = Costs(1.0, 0.0)
WORSE, SAME, BETTER = (-0.3, -0.1), (-0.1, 0.1), (0.1, 0.3)


def test_passes_are_those_of_the_features_the_epochs_and_the_validations() -> None:
    # 50 images to train on: one pass for features and three an epoch; 50 held out: one for features and one an epoch.
    assert TrialSize(100, 2, 1, 4).num_passes == 50 * (1 + 3 * 4) + 50 * (1 + 4)
    assert TrialSize(100, 5, 5, 6).num_passes == 5 * (80 * (1 + 3 * 6) + 20 * (1 + 6))


def test_solver_counts_once_a_fold() -> None:
    assert Costs(0.5, 10.0).predict(TrialSize(100, 2, 2, 4)) == 0.5 * 1800 + 2 * 10


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        (8300, (100, 5, 5, 6)),  # 5 x (80 x 19 + 20 x 7)
        (8299, (100, 5, 5, 5)),
        (5700, (100, 5, 5, 4)),
        (5699, (100, 2, 2, 6)),
        (2600, (100, 2, 2, 6)),
        (2599, (100, 2, 2, 5)),
        (1799, (100, 2, 1, 6)),
        (1299, (100, 2, 1, 5)),
        (899, (99, 2, 1, 4)),  # 9 passes an image
        (360, (40, 2, 1, 4)),
    ],
)
def test_budget_is_spent_on_images_then_folds_then_epochs(budget: float, size: tuple[int, ...]) -> None:
    assert plan_trial(100, 5, COSTS, budget, 4, 6) == TrialSize(*size)


def test_plan_that_cannot_be_shortened_has_fewer_images() -> None:
    assert plan_trial(100, 5, COSTS, 1299, 6, 6) == TrialSize(99, 2, 1, 6)  # 13 passes an image


def test_solver_leaves_less_of_the_budget() -> None:
    assert plan_trial(100, 5, Costs(1.0, 100.0), 899, 4, 6) == TrialSize(88, 2, 1, 4)


@pytest.mark.parametrize(("costs", "found", "needed"), [(COSTS, 39, 360), (Costs(1.0, 500.0), 0, 860)])
def test_budget_that_is_too_small_is_one_line(costs: Costs, found: int, needed: int) -> None:
    message = f"budget: 5m 59s suffices for {found} images, and 40 are needed; give at least {needed}s"
    with pytest.raises(UserError, match=message):
        plan_trial(100, 5, costs, 359, 4, 6)


def test_small_sets_need_no_more_images_than_they_have() -> None:
    assert plan_trial(30, 5, COSTS, 270, 4, 6) == TrialSize(30, 2, 1, 4)


def test_images_are_stratified_and_copies_left_out(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", {"dots": 20, "plain": 40})
    for i in range(6):
        shutil.copy(root / "dots" / f"{i:03}.png", root / "dots" / f"copy{i}.png")
    images = read_photos(root)
    num = torch.bincount(images.targets.values[images.firsts])
    assert int(num[0]) == 20
    rows, folds = draw_images(images, TrialSize(len(images.firsts) // 2, 2, 1, 4))
    assert set(rows.tolist()) <= set(images.firsts.tolist())
    assert rows.tolist() == sorted(rows.tolist())
    classes = images.targets.values[rows]
    assert (torch.bincount(classes) - num / 2).abs().max() <= 0.5
    assert (torch.bincount(classes[folds == 0]) - num / 4).abs().max() <= 0.75
    rows, folds = draw_images(images, TrialSize(len(images.firsts), 5, 5, 4))
    assert torch.equal(rows, images.firsts)
    assert (torch.bincount(folds) - len(rows) / 5).abs().max() < 1


def test_groups_are_whole(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 40, "lines": 40}), groups="([0-9])[.]png")  # ten groups
    rows, folds = draw_images(images, TrialSize(40, 2, 1, 4))
    assert images.groups is not None
    drawn = images.groups[rows]
    assert 30 <= len(rows) <= 50
    assert not set(drawn[folds == 0].tolist()) & set(drawn[folds == 1].tolist())
    left = sorted(set(images.firsts.tolist()) - set(rows.tolist()))
    assert not set(drawn.tolist()) & set(images.groups[left].tolist())


def test_part_has_the_images_of_both_splits(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 10, "lines": 10}), val_fraction=0.5)
    rows = torch.tensor([1, 8, 11, 19])
    part = images.part(rows)
    assert [part.paths.full(i) for i in range(4)] == [images.samples[row].path for row in rows.tolist()]
    assert torch.equal(part.targets, images.targets.values[rows])
    digits = read_images(DigitsDataModule(shots=2))
    part = digits.part(torch.tensor([0, 21]))
    first, second = digits.splits["train"], digits.splits["val"]
    expected = torch.stack([first.images[first.rows[0]], second.images[second.rows[1]]])
    assert torch.equal(part.images[part.rows], expected)
    assert torch.equal(part.targets, digits.targets.values[[0, 21]])


def test_interval_of_shares_is_the_one_of_bonett_and_price() -> None:
    differences = torch.tensor([1.0] * 9 + [-1.0] * 3 + [0.0] * 88)
    low, high = paired_interval(differences, torch.arange(100), is_share=True)
    first, second = 10 / 102, 4 / 102
    half = t.ppf(0.975, 101) * np.sqrt((first + second - (first - second) ** 2) / 102)
    assert (low, high) == (pytest.approx(first - second - half), pytest.approx(first - second + half))


def test_images_on_which_both_agree_are_no_certainty() -> None:
    low, high = paired_interval(torch.zeros(100), torch.arange(100), is_share=True)
    assert (low, high) == (pytest.approx(-high), pytest.approx(t.ppf(0.975, 101) * np.sqrt(2) / 102))


def test_interval_of_losses_is_that_of_their_mean() -> None:
    differences = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    low, high = paired_interval(differences, torch.arange(50))
    half = t.ppf(0.975, 49) * differences.std(correction=0) / np.sqrt(50)
    assert (high - low) / 2 == pytest.approx(float(half))
    assert (high + low) / 2 == pytest.approx(float(differences.mean()))


def test_images_of_a_group_count_as_one() -> None:
    differences = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    once = paired_interval(differences, torch.arange(20))
    assert paired_interval(differences.repeat(3), torch.arange(20).repeat(3)) == pytest.approx(once)
    assert paired_interval(differences, torch.zeros(20)) == (-np.inf, np.inf)


def test_both_models_are_scored_on_the_same_images(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 4, "lines": 4}))
    sure = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    classes = torch.tensor([0, 1])
    first = HeldOut(torch.tensor([0, 1]), Targets("softmax", classes, 2), probe=sure, tuned=sure)
    second = HeldOut(torch.tensor([2, 3]), Targets("softmax", classes, 2), probe=sure.flip(1), tuned=sure)
    found = compare([first, second], images)
    right, wrong = np.log1p(np.exp(-2)), np.log1p(np.exp(2))
    assert (found.score.probe, found.score.tuned, found.score.change) == (0.5, 1.0, 0.5)
    assert found.loss.probe == pytest.approx((right + wrong) / 2)
    assert found.loss.tuned == pytest.approx(right)
    changes = torch.tensor([0, 0, 1, 1]).double()
    assert found.score.interval == paired_interval(changes, torch.arange(4), is_share=True)
    differences = torch.tensor([0, 0, right - wrong, right - wrong])
    assert found.loss.interval == pytest.approx(paired_interval(differences, torch.arange(4)))


def test_copies_of_a_group_depend_on_each_other(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 20, "lines": 20}), groups="([0-9])[.]png")
    assert images.groups is not None
    logits = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(0))
    part = HeldOut(torch.arange(40), images.targets, logits[0], logits[1])
    differences = images.targets.correct(logits[1]) - images.targets.correct(logits[0])
    groups = join_copies(images.groups, images.copies)
    assert compare([part], images).score.interval == paired_interval(differences, groups, is_share=True)


def test_numbers_are_compared_by_r2(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 4, "lines": 4}))
    values = torch.tensor([[0.0], [2.0], [4.0]])
    part = HeldOut(torch.arange(3), Targets("squared", values, 1), probe=torch.full((3, 1), 2.0), tuned=values + 1)
    found = compare([part], images)
    assert found.score.probe == pytest.approx(0.0)
    assert found.score.tuned == pytest.approx(1 - 1 / (8 / 3))
    assert (found.loss.probe, found.loss.tuned) == (pytest.approx(8 / 3), pytest.approx(1.0))


@pytest.mark.parametrize(
    ("score", "loss", "share", "verdict", "reason"),
    [
        (BETTER, WORSE, 0.01, "fine-tune", "its score is higher on the same images"),
        (WORSE, WORSE, 1.0, "linear probe", "fine-tuning lowers the score on the same images"),
        (WORSE, BETTER, 0.4, "undecided", "fine-tuning lowers the score on the same images, but after 40% of the"),
        (SAME, WORSE, 0.01, "fine-tune", "its loss is lower"),
        (SAME, BETTER, 0.5, "linear probe", "fine-tuning raises the loss"),
        (SAME, SAME, 1.0, "undecided", "there are too few images to tell"),
        ((-0.02, 0.009), SAME, 1.0, "linear probe", "fine-tuning gains less than 1 point"),
        ((-0.02, 0.009), SAME, 0.3, "undecided", "fine-tuning gains less than 1 point, but after 30% of the steps"),
        ((-0.02, 0.011), SAME, 1.0, "undecided", "there are too few images to tell"),
    ],
)
def test_verdict_is_by_the_score_then_the_loss_then_the_gain_that_is_possible(
    score: tuple[float, float], loss: tuple[float, float], share: float, verdict: str, reason: str
) -> None:
    found, why = Comparison(Difference(0.8, 0.8, score), Difference(0.5, 0.5, loss)).judge(share)
    assert found == verdict
    assert why.startswith(reason)
