"""Temperatures, label sets, and distances to known images."""

import math

import pytest
import torch
from torch.nn import functional as F

from lit_ft.model.calibration import (
    MAX_REFERENCES,
    Calibration,
    distances_to_nearest,
    fit_label_sets,
    fit_temperature,
)
from lit_ft.tasks.task import Task


def drawn(num, scale=1.0, num_classes=4, seed=0):
    """Logits, ``scale`` times as large as those by whose probabilities the classes are drawn, and these classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, num_classes, generator=generator)
    classes = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return scale * logits, classes


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_temperature_is_what_logits_are_too_large_by(scale):
    # The standard error of its log is about 0.02 here.
    logits, classes = drawn(5000, scale)
    assert math.log(fit_temperature(logits, classes, Task("multiclass", 4))) == pytest.approx(math.log(scale), abs=0.08)


def test_temperature_is_the_one_of_the_least_cost():
    logits, classes = drawn(40, 2.0)
    # By hand, over a grid of logs of temperatures, whose prior has a deviation of 0.3.
    grid = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    costs = [
        float(F.cross_entropy(logits.double() / math.exp(t), classes, reduction="sum")) + t**2 / 0.18
        for t in grid.tolist()
    ]
    best = float(grid[costs.index(min(costs))])
    smoothed = Task("multiclass", 4, label_smoothing=0.3)
    assert math.log(fit_temperature(logits, classes, smoothed)) == pytest.approx(best, abs=0.002)


def test_temperature_of_few_images_is_near_one():
    logits, classes = drawn(4, 3.0, seed=1)
    assert abs(math.log(fit_temperature(logits, classes, Task("multiclass", 4)))) < 0.7  # of log 3, 1.1
    wrong = torch.eye(4)[:1] * 50, torch.tensor([1])  # one image, for which any temperature is too low
    assert 1 < fit_temperature(*wrong, Task("multiclass", 4)) < 4


def test_temperature_of_labels_counts_each_of_them():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(600, 3, generator=generator)
    labels = torch.bernoulli(logits.sigmoid(), generator=generator).int()
    found = fit_temperature(2.5 * logits, labels, Task("multilabel", 3))
    assert math.log(found) == pytest.approx(math.log(2.5), abs=0.2)
    # Of 1,800 binary numbers it is as of 1,800 images of one label each.
    wide = torch.cat([torch.zeros(1800, 1), 2.5 * logits.flatten().unsqueeze(1)], dim=1)
    assert found == pytest.approx(fit_temperature(wide, labels.flatten(), Task("multiclass", 2)), rel=1e-4)


def test_label_sets_hold_the_true_class_as_often_as_they_say():
    held, sizes = [], []
    for seed in range(300):  # each with 50 images to tell the threshold, of a model that is far too sure
        logits, classes = drawn(51, 4.0, seed=seed)
        probabilities = logits.softmax(dim=1)
        known = Calibration(least_probability=fit_label_sets(probabilities[:50], classes[:50]))
        (found,) = known.label_sets(probabilities[50:])
        held.append(bool(found[classes[50]]))
        sizes.append(int(found.sum()))
    # 46 of 51 ranks, 0.902; the standard error of the share of 300 is 0.017.
    assert sum(held) / 300 == pytest.approx(0.902, abs=0.05)
    assert 1 < sum(sizes) / 300 < 4


def test_threshold_is_the_probability_that_nine_in_ten_true_classes_have():
    true = torch.linspace(0.05, 0.95, 19)
    probabilities = torch.stack([true, 1 - true], dim=1)
    # Rank 18 of 20 places from above, the second smallest.
    assert fit_label_sets(probabilities, torch.zeros(19)) == pytest.approx(0.1)
    assert fit_label_sets(probabilities[:9], torch.zeros(9)) == pytest.approx(0.05)
    assert fit_label_sets(probabilities[:8], torch.zeros(8)) is None


def test_class_that_is_probable_enough_of_its_own_is_sure_whatever_the_others_have():
    # A model that is nearly certain of each validation image: nine in ten true classes have .995 and more.
    true = torch.linspace(0.995, 0.9999, 100)
    known = Calibration(least_probability=fit_label_sets(torch.stack([true, 1 - true], dim=1), torch.zeros(100)))
    assert known.least_probability == 0.9
    later = torch.tensor([[0.989, 0.011], [0.91, 0.09], [0.89, 0.11], [0.01, 0.99]])
    assert known.are_unsure(later).tolist() == [False, False, True, False]


def test_images_of_another_kind_are_unlike_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2, 32, generator=generator)

    def images(centre, num):
        return centre + 0.3 * torch.randn(num, 32, generator=generator)

    known = Calibration().with_references(images(centres[0], 200))
    assert float(known.are_unlike(images(centres[0], 1000)).float().mean()) == pytest.approx(0.05, abs=0.04)
    assert bool(known.are_unlike(images(centres[1], 100)).all())
    assert bool(known.are_unlike(3 * images(centres[0], 100)).float().mean() < 0.2)  # as lengths do not count


def test_distances_are_those_of_features_of_length_one():
    references = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    found = distances_to_nearest(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), references)
    torch.testing.assert_close(found, torch.tensor([0.0, math.sqrt(2)]), atol=1e-6, rtol=0)
    apart = distances_to_nearest(references, references, are_same=True)
    torch.testing.assert_close(apart, torch.tensor([math.sqrt(2), 0.0, 0.0]), atol=1e-6, rtol=0)


def test_references_are_few_and_half_precise_and_none_of_few_images_is_far():
    features = torch.randn(2 * MAX_REFERENCES + 1, 3)
    known = Calibration().with_references(features)
    assert known.references.shape == (667, 3)
    assert known.references.dtype == torch.float16
    few = Calibration().with_references(features[:18])
    assert few.farthest is None
    assert few.are_unlike(features) is None
    assert Calibration().label_sets(features) is None
    with_all = Calibration().with_references(features[:19])
    assert bool(with_all.are_unlike(with_all.references).sum() == 0)


def test_plain_values_are_read_back():
    known = Calibration(1.5, 0.2).with_references(torch.randn(30, 4))
    again = Calibration.from_plain(known.plain())
    assert (again.temperature, again.least_probability, again.farthest) == (1.5, 0.2, known.farthest)
    assert again.references.equal(known.references)
