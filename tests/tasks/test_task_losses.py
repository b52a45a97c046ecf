"""Losses of tasks."""

import pytest
import torch
import torch.nn.functional as F

from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task

B, K = 40, 7  # of the fixtures


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multiclass_loss_is_cross_entropy_with_smoothing(logits, classes, smoothing):
    # Smoothing mixes the one-hot target with the uniform one.
    target = (1 - smoothing) * F.one_hot(classes, K) + smoothing / K
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(Task("multiclass", K, smoothing).loss(logits, classes), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_evaluation_losses_are_without_smoothing(logits, classes, soft):
    task, targets = Task("multiclass", K, 0.1), F.one_hot(classes, K).float() if soft else classes
    expected = F.cross_entropy(logits, classes, reduction="none")
    torch.testing.assert_close(task.evaluation_loss(logits, targets), expected.mean())
    torch.testing.assert_close(task.image_losses(logits, targets), expected)
    assert not torch.isclose(task.loss(logits, targets), expected.mean())


UNITS = Standardisation((5.0,) * K, (2.0,) * K)


@pytest.mark.parametrize(
    "task", [Task("multiclass", K, 0.1), Task("multilabel", K), Task("regression", K, standardisation=UNITS)]
)
def test_losses_of_predictions_are_those_of_their_logits(task, logits, classes, labels):
    targets = {"multiclass": classes, "multilabel": labels, "regression": logits.double().roll(1)}[task.name]
    found = task.restore_logits(task.predict(logits))
    wanted = task.image_losses(logits, targets)
    torch.testing.assert_close(task.image_losses(found, targets), wanted.to(found), atol=1e-5, rtol=1e-5)
    shift = found - logits
    if task.name == "multiclass":  # a constant of each image, as probabilities have no other
        shift = shift - shift[:, :1]
    assert float(shift.abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["multiclass", "multilabel"])
def test_logits_of_probabilities_of_0_and_1_are_finite(name):
    found = Task(name, 2).restore_logits(torch.tensor([[0.0, 1.0]]))
    assert bool(found.isfinite().all())
    assert float(found[0, 1] - found[0, 0]) > 30


@pytest.mark.parametrize("dtype", [torch.long, torch.float64, torch.bool])
def test_multilabel_loss_is_binary_cross_entropy(logits, labels, dtype):
    p = logits.sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(Task("multilabel", K).loss(logits, labels.to(dtype)), expected)


def test_regression_loss_is_the_mean_squared_error(logits):
    targets = torch.randn(B, K, dtype=torch.float64)
    expected = (logits - targets).square().mean().float()
    torch.testing.assert_close(Task("regression", K).loss(logits, targets), expected)


def test_label_smoothing_is_left_out_where_there_are_no_classes(logits, labels):
    for name in ("multilabel", "regression"):
        assert Task(name, K, 0.1).loss(logits, labels).equal(Task(name, K).loss(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_probabilities_is_cross_entropy_with_smoothing(logits, smoothing):
    shares = torch.rand(B, K, generator=torch.Generator().manual_seed(3)).softmax(1).double()
    target = (1 - smoothing) * shares + smoothing / K
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(Task("multiclass", K, smoothing).loss(logits, shares), expected.float())


WEIGHT = torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 9.0])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_is_divided_by_the_number_of_images(logits, classes, smoothing, soft):
    target = (1 - smoothing) * F.one_hot(classes, K) + smoothing / K
    expected = -(WEIGHT * target * logits.log_softmax(dim=1)).sum() / B
    targets = F.one_hot(classes, K) if soft else classes
    found = Task("multiclass", K, smoothing).loss(logits, targets, WEIGHT)
    torch.testing.assert_close(found, expected)


def test_classes_of_a_batch_do_not_rescale_its_weighted_loss(logits):
    task, rare = Task("multiclass", K), torch.full((B,), 6)
    torch.testing.assert_close(task.loss(logits, rare, WEIGHT), 9.0 * task.loss(logits, rare))  # torch's is 1 times


@pytest.mark.parametrize("name", ["multiclass", "multilabel"])
def test_gradient_of_the_weighted_loss_is_the_mean_of_those_of_its_parts(name, logits, classes, labels):
    task, targets = Task(name, K), {"multiclass": classes, "multilabel": labels}[name]
    targets[: B // 2] = targets[: B // 2].sort(dim=0).values  # parts of unlike classes
    logits.requires_grad_()
    whole, one, other = (
        torch.autograd.grad(task.loss(logits[rows], targets[rows], WEIGHT), logits)[0]
        for rows in (slice(None), slice(B // 2), slice(B // 2, None))
    )
    torch.testing.assert_close(whole, (one + other) / 2)


def test_weight_of_a_label_is_that_of_its_positives(logits, labels):
    p = logits.sigmoid()
    expected = -(WEIGHT * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(Task("multilabel", K).loss(logits, labels, WEIGHT), expected)


SHARES = torch.tensor([[0.6991, 0.3009] + [0.0] * 5] * B)


@pytest.mark.parametrize(
    ("targets", "weight"), [(SHARES, None), (SHARES, WEIGHT), (torch.zeros(B, dtype=torch.long), WEIGHT)]
)
def test_shares_and_weights_are_not_rounded_to_half_precision(logits, targets, weight):
    half, task = logits.bfloat16(), Task("multiclass", K)
    assert task.loss(half, targets, weight).equal(task.loss(half.float(), targets, weight))
