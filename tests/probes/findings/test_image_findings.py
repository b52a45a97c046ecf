"""What the features of one backbone tell about the images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from probe_sets import clusters
from torch import Tensor

from lit_ft.data.checks.findings import Sample
from lit_ft.data.folds import make_folds
from lit_ft.probes.findings.image_findings import measure_copies, measure_labels, rank_labels, rank_unlike
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import CrossValidation, cross_validate
from lit_ft.probes.heads.solver import Targets
from lit_ft.probes.images import ProbeImages

NAMES = ["ant", "bee", "cat"]


def of_classes(classes: Tensor, copies: Tensor | None = None) -> ProbeImages:
    """Images of three classes, without any data."""
    samples = [Sample(f"{row}.png", "train", NAMES[label]) for row, label in enumerate(classes.tolist())]
    copies = torch.arange(len(classes)) if copies is None else copies
    data = SimpleNamespace(class_names=NAMES)
    return ProbeImages(data, {"train": samples}, samples, Targets("softmax", classes, 3), None, copies)


def validate(features: Tensor, images: ProbeImages, repeats: int = 2) -> CrossValidation:
    folds = make_folds(images.targets.values[images.firsts], 5, repeats)
    return cross_validate(Basis(features), images.targets, folds[:, torch.searchsorted(images.firsts, images.copies)])


def test_flipped_labels_are_ranked_first_with_their_true_class() -> None:
    features, classes = clusters(300, 40, 3)
    flipped = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:15]
    labels = classes.clone()
    labels[flipped] = (labels[flipped] + 1) % 3
    images = of_classes(labels)
    ranking = rank_labels(validate(features, images), images)
    first = ranking.items[:30]
    found = [item for item in first if item["row"] in set(flipped.tolist())]
    assert len(found) >= 12
    for item in found:
        assert item["class"] == NAMES[labels[item["row"]]]
        assert item["path"] == f"{item['row']}.png"
    right = [item["suggested"] == NAMES[classes[item["row"]]] for item in found]
    assert sum(right) >= 0.9 * len(right)
    assert [item["margin"] for item in first] == sorted(item["margin"] for item in first)
    assert 5 <= ranking.count <= 60


def test_images_that_are_never_held_out_have_no_issue() -> None:
    features, classes = clusters(60, 10, 2)
    classes[17] = 2
    images = of_classes(classes)
    ranking = rank_labels(validate(features, images), images)
    assert sorted(item["row"] for item in ranking.items) == [row for row in range(60) if row != 17]


def test_images_of_another_kind_are_first_and_copies_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    features = 0.3 * torch.randn(60, 16, generator=generator) + 1
    classes = torch.arange(3).repeat(20)
    odd = [0, 16, 32]
    features[odd] = -torch.randn(3, 16, generator=generator).abs()
    copies = torch.arange(60)
    features[48], copies[48] = features[0], 0
    items = rank_unlike(features, of_classes(classes, copies)).items
    assert {item["row"] for item in items[:3]} == set(odd)
    assert 48 not in {item["row"] for item in items}
    assert items[0]["distance"] > 2
    assert torch.tensor([one["distance"] for one in items]).median() == 1


def test_images_without_another_one_of_their_class_are_not_ranked() -> None:
    classes = torch.tensor([0] * 8 + [1])
    items = rank_unlike(torch.randn(9, 4), of_classes(classes)).items
    assert sorted(item["row"] for item in items) == list(range(8))


def test_copies_in_other_folds_flatter_the_score() -> None:
    # With labels at random only copies are known.
    generator = torch.Generator().manual_seed(0)
    once, labels = torch.randn(40, 300, generator=generator), torch.randint(3, (40,), generator=generator)
    features, classes = once.repeat(2, 1), labels.repeat(2)
    images = of_classes(classes, torch.arange(40).repeat(2))
    validated = validate(features, images, repeats=3)
    effect = measure_copies(Basis(features), images, validated)
    assert effect.num_copies == 40
    assert effect.with_copies > 0.9
    assert effect.without == pytest.approx(float(validated.correct[:, :40].mean()))
    assert effect.without < 0.6


def test_class_with_the_least_recall_needs_labels_most() -> None:
    features, classes = clusters(240, 24, 3)
    noise = torch.randn(240, 24, generator=torch.Generator().manual_seed(1))
    features[classes == 1] = features[classes == 1] * 0.6 + features[classes == 2].mean(dim=0) * 0.6
    features[classes == 1] += 0.2 * noise[classes == 1]
    images = of_classes(classes)
    labels = measure_labels(Basis(features), images, validate(features, images))
    assert labels.sizes[0] == 3
    assert labels.sizes[-1] == 64
    assert labels.accuracies[-1] > labels.accuracies[0]
    assert labels.neediest == min(labels.recalls, key=labels.recalls.__getitem__)
    assert labels.neediest_gain is not None
    assert labels.more is not None
    assert len(labels.intervals) == len(labels.sizes)
    assert all(
        0 <= low < value < high <= 1 for value, (low, high) in zip(labels.accuracies, labels.intervals, strict=True)
    )
    assert labels.fitted[-1][0] == pytest.approx(4 * 64)


def test_few_images_have_no_outlook() -> None:
    features, classes = clusters(12, 4, 3)
    images = of_classes(classes)
    labels = measure_labels(Basis(features), images, validate(features, images, 1))
    assert labels.more is None
    assert labels.fitted == []
