"""Scores of heads on images that they have not seen."""

from __future__ import annotations

import itertools

import pytest
import torch
from probe_sets import clusters, scale
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from lit_ft.data.folds import make_folds
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import (
    CrossValidation,
    best_strength,
    corrected_interval,
    cross_validate,
    wilson_interval,
)
from lit_ft.probes.heads.solver import LOSSES, Targets
from lit_ft.tasks.task import Task, TaskName


def test_single_image_of_a_class_is_trained_on_and_never_scored() -> None:
    features, classes = clusters(41, 6, 2)
    classes[-1] = 2
    result = cross_validated(features, classes, (0.01, 0.1))
    assert result.folds[:, -1].tolist() == [-1, -1]
    assert result.logits[:, -1].isnan().all()
    assert result.logits[:, :-1].isfinite().all()
    assert result.accuracy == result.correct[:, :-1].mean()


def cross_validated(features: Tensor, classes: Tensor, strengths: tuple[float, ...]) -> CrossValidation:
    folds = make_folds(classes, num_folds=5, repeats=2)
    targets = Targets("softmax", classes, int(classes.max()) + 1)
    return cross_validate(Basis(features, dtype=torch.float64), targets, folds, strengths=strengths)


def test_losses_and_choice_are_those_of_scikit_learn() -> None:
    features, classes = clusters(150, 30, 3)
    strengths = (0.001, 0.03, 1.0)
    ours = cross_validated(features, classes, strengths)
    scaled = scale(features)
    for repeat, folds in enumerate(ours.folds.numpy()):
        for fold, index in itertools.product(range(5), range(3)):
            peer = LogisticRegression(C=1 / (strengths[index] * 120), tol=1e-8, max_iter=10_000)
            peer.fit(scaled[folds != fold], classes[folds != fold].numpy())
            expected = log_loss(classes[folds == fold].numpy(), peer.predict_proba(scaled[folds == fold]))
            # To choose a strength, weights are solved to a hundredth of their size.
            assert ours.losses[repeat, fold, index] == pytest.approx(expected, rel=1e-2)
    assert ours.best == ours.losses.mean(dim=(0, 1)).argmin() == 1


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_loss_is_that_of_an_evaluation(task: TaskName) -> None:
    generator = torch.Generator().manual_seed(0)
    features, values = torch.randn(60, 4, generator=generator), torch.randn(60, 3, generator=generator)
    given = {"multiclass": values.argmax(dim=1), "multilabel": (values > 0).long(), "regression": values}[task]
    folds = (torch.arange(60) % 5).unsqueeze(0)  # of the same size
    found = cross_validate(Basis(features), Targets(LOSSES[task], given, 3), folds, strengths=(0.1,))
    assert found.loss == pytest.approx(float(Task(task, 3).evaluation_loss(found.logits[0], given)), rel=1e-5)


def test_search_ends_two_strengths_after_the_best() -> None:
    features, classes = clusters(150, 30, 3)
    few = cross_validated(features, classes, (1e-5, 1e-4, 0.001, 0.03, 1.0))
    assert few.losses.isinf().all(dim=(0, 1)).tolist() == [True, False, False, False, False]
    assert few.best == 3


def test_predictions_are_of_heads_that_have_not_seen_the_image() -> None:
    # Random labels: who has seen an image knows it, with more features than images.
    generator = torch.Generator().manual_seed(0)
    features, classes = torch.randn(100, 300, generator=generator), torch.randint(2, (100,), generator=generator)
    result = cross_validated(features, classes, (0.001,))
    assert abs(result.accuracy - 0.5) < 0.12
    assert result.logits.shape == (2, 100, 2)


def test_weights_of_images_count_in_training_and_in_the_losses() -> None:
    features, classes = clusters(100, 8, 2)
    folds, targets = make_folds(classes, 5, 1), Targets("softmax", classes, 2)
    basis = Basis(features, dtype=torch.float64)
    plain = cross_validate(basis, targets, folds, strengths=(0.1,))
    doubled = cross_validate(basis, targets, folds, torch.full((100,), 2.0), strengths=(0.1,))
    torch.testing.assert_close(doubled.losses, plain.losses)
    tilted = cross_validate(basis, targets, folds, torch.where(classes == 0, 10.0, 1.0), strengths=(0.1,))
    predicted = [(result.logits.argmax(dim=2) == 0).double().mean() for result in (plain, tilted)]
    assert predicted[1] > predicted[0] + 0.03


def test_best_strength_has_the_least_mean_loss() -> None:
    assert best_strength(torch.tensor([[[1.0, 3.0, 2.0]], [[9.0, 1.0, 3.0]]])) == 1


def test_interval_is_that_of_nadeau_and_bengio() -> None:
    scores = torch.tensor([0.7, 0.8, 0.9, 0.8])
    # t with 3 degrees of freedom is 3.182; the variance 0.00667 counts (1/4 + 1/3) times.
    assert corrected_interval(scores, 1 / 3) == pytest.approx((0.8 - 0.19847, 0.8 + 0.19847), abs=1e-4)


def test_interval_of_an_accuracy_is_within_0_and_1_and_that_of_r2_is_not() -> None:
    folds, logits = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[[1.0, 0.0]] * 3 + [[0.0, 1.0]]])
    losses, strengths = torch.zeros(1, 2, 1), torch.tensor([1.0])
    result = CrossValidation(folds, strengths, losses, logits, Targets("softmax", torch.tensor([0, 0, 0, 0]), 2))
    assert result.fold_accuracies.tolist() == [1.0, 0.5]
    assert result.accuracy_interval() == (0.0, 1.0)
    right = CrossValidation(folds, strengths, losses, logits, Targets("softmax", torch.tensor([0, 0, 0, 1]), 2))
    assert right.fold_accuracies.tolist() == [1.0, 1.0]
    assert right.accuracy_interval() == pytest.approx(wilson_interval(1.0, 4))
    numbers = Targets("squared", torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), 1)
    predicted = torch.tensor([[[1.0], [1.0], [0.0], [0.0]]])
    result = CrossValidation(folds, strengths, losses, predicted, numbers)
    # Of variance 1 and squared errors 0, 4, 1 and 1.
    assert result.accuracy == pytest.approx(-0.5)
    assert result.fold_accuracies.tolist() == [-1.0, 0.0]
    assert result.accuracy_interval()[0] < -1.0


def test_accuracy_of_labels_is_the_share_that_is_right() -> None:
    features, classes = clusters(60, 10, 2)
    labels = torch.stack([classes == 0, torch.ones(60)], dim=1).float()
    folds = make_folds(classes, 3, 1)
    result = cross_validate(Basis(features), Targets("sigmoid", labels, 2), folds)
    right = ((result.logits[0] > 0) == (labels > 0.5)).float().mean()
    assert result.accuracy == pytest.approx(float(right))
    assert result.accuracy > 0.7
