"""Linear probes, from features to logits."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from probe_sets import clusters, scale
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from lit_ft.errors import UserError
from lit_ft.probes.heads.linear_probe import DEFAULT_STRENGTH, fit_linear_probe, refuse_equal
from lit_ft.probes.heads.solver import Targets


def test_probabilities_are_those_of_scikit_learn_on_features_as_they_are() -> None:
    features, classes = clusters(150, 20, 3)
    probe = fit_linear_probe(features, Targets("softmax", classes, 3))
    assert probe.validated is not None
    assert probe.l2 == probe.validated.strengths[probe.validated.best]
    peer = LogisticRegression(C=1 / (probe.l2 * 150), tol=1e-9, max_iter=10_000).fit(scale(features), classes.numpy())
    new, _ = clusters(50, 20, 3, seed=1)
    expected = torch.from_numpy(peer.predict_proba(scale(new, features)))
    torch.testing.assert_close(probe(new.double()).softmax(dim=1), expected, atol=1e-3, rtol=0)
    assert probe(new).dtype == torch.float32


def test_mean_prediction_is_the_share_of_each_class() -> None:
    features, classes = clusters(120, 10, 2)
    classes[:30] = 0
    probe = fit_linear_probe(features, Targets("softmax", classes, 2))
    shares = torch.bincount(classes) / len(classes)
    torch.testing.assert_close(probe(features.double()).softmax(dim=1).mean(dim=0).float(), shares, atol=1e-4, rtol=0)


def test_class_weights_let_the_rare_class_count_more() -> None:
    features, classes = clusters(200, 5, 2)
    classes[20:] = classes[20:].clamp(max=0)
    rare = (classes == 1).float()
    weights = torch.where(rare > 0, 10.0, 1.0)
    targets = Targets("softmax", classes, 2)
    recalls = [
        float((probe(features).argmax(dim=1) * rare).sum() / rare.sum())
        for probe in (fit_linear_probe(features, targets), fit_linear_probe(features, targets, weights))
    ]
    assert recalls[1] > recalls[0]


def test_regression_and_labels() -> None:
    features, classes = clusters(90, 12, 3)
    numbers = (classes - 1).double().unsqueeze(1)
    probe = fit_linear_probe(features, Targets("squared", numbers, 1))
    assert float((probe(features.double()) - numbers).square().mean()) < 0.75 * float(numbers.square().mean())
    labels = torch.stack([classes == 0, classes > 0], dim=1).long()
    probe = fit_linear_probe(features, Targets("sigmoid", labels, 2))
    assert float(((probe(features) > 0) == labels.bool()).double().mean()) > 0.8


@pytest.mark.parametrize("classes", [[0], [0, 1]])
def test_too_few_images_to_choose_a_penalty(classes: list[int]) -> None:
    features = torch.randn(len(classes), 3)
    probe = fit_linear_probe(features, Targets("softmax", torch.tensor(classes), 2))
    assert probe.validated is None
    assert probe.l2 == DEFAULT_STRENGTH
    assert probe(features).argmax(dim=1).tolist() == classes


@pytest.mark.parametrize(
    ("features", "is_refused"),
    [
        (torch.full((3, 2), 5.0), True),
        (torch.zeros(3, 2), True),
        (torch.tensor([[5.0, 1.0], [5.0, 1.1]]), False),
        (torch.tensor([[5.0, 1.0]]), False),
    ],
)
def test_features_that_are_all_equal_are_refused(features: torch.Tensor, is_refused: bool) -> None:
    with pytest.raises(UserError, match="of all 3 images are equal; take other im") if is_refused else nullcontext():
        refuse_equal(features)


def test_features_that_are_not_finite_are_refused() -> None:
    features, classes = clusters(20, 4, 2)
    features[7, 1], features[9, 0] = float("nan"), float("inf")
    with pytest.raises(UserError, match="features of 2 of 20 images are not finite, first those of image 7"):
        fit_linear_probe(features, Targets("softmax", classes, 2))


def test_channel_that_is_silent_on_the_training_images_does_not_decide_alone() -> None:
    features, classes = clusters(150, 20, 3)
    silent = torch.zeros(len(features), 1)
    silent[0] = 0.002  # deviation 1.6e-4, of others 0.01 to 100: standardised, the image below would be 6,000 off
    probe = fit_linear_probe(torch.cat([features, silent], dim=1), Targets("softmax", classes, 3))
    new, _ = clusters(1, 20, 3, seed=1)
    quiet, loud = (probe(F.pad(new.double(), (0, 1), value=value)).softmax(dim=1) for value in (0.0, 1.0))
    torch.testing.assert_close(quiet, loud, atol=0.05, rtol=0)
