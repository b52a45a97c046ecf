import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rounding import by_sk
from sklearn import metrics as sk
from torch.utils._python_dispatch import TorchDispatchMode

from lit_ft.errors import UserError
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task

B, K = 40, 7  # of the fixtures


def computed(task, logits, targets, batch_size=16):
    """The metrics after several batches, the last of which is smaller."""
    metrics = task.metrics("val/")
    for start in range(0, len(logits), batch_size):
        task.update(metrics, logits[start : start + batch_size], targets[start : start + batch_size])
    return {name: value.item() for name, value in metrics.compute().items()}


YEARS = Standardisation((1989.5,), (5.77,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_regression_rounds_no_target_to_the_precision_of_the_logits(dtype):
    years = torch.arange(1980.0, 2000.0).view(-1, 1)
    logits = ((years - 1989.5) / 5.77 + 0.25).to(dtype)
    task = Task("regression", 1, standardisation=YEARS)
    errors = logits.double() * 5.77 + 1989.5 - years
    assert task.loss(logits, years).dtype == torch.float32
    assert float(task.loss(logits, years)) == pytest.approx(float((errors / 5.77).square().mean()), rel=1e-5)
    found = computed(task, logits, years, batch_size=7)
    assert found["val/mse"] == pytest.approx(float(errors.square().mean()))
    assert found["val/mae"] == pytest.approx(float(errors.abs().mean()))
    assert found["val/r2"] == pytest.approx(by_sk(sk.r2_score, years, years + errors))


@pytest.mark.parametrize("standardisation", [None, Standardisation((3e5,), (1e-6,))])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_small_targets_at_a_large_offset_keep_their_r2(standardisation, scale):
    targets = 3e5 + scale * torch.randn(B, 1, generator=torch.Generator().manual_seed(0)).double()
    units = standardisation or Standardisation.none(1)
    logits = units.standardise(targets) + scale / units.scale[0]
    found = computed(Task("regression", 1, standardisation=standardisation), logits, targets)
    spread = (targets - 3e5).var(correction=0)
    # Of numbers at 3e5, float64 holds 6e-11.
    assert found["val/r2"] == pytest.approx(1 - scale**2 / float(spread), abs=1e-3)


@pytest.mark.parametrize("name", ["multiclass", "multilabel"])
def test_classes_without_an_image_are_left_out_of_the_means(name, logits, classes, labels):
    present = [0, 2, 3, 5]
    classes = torch.tensor(present)[classes % 4]
    labels = labels * F.one_hot(torch.tensor(present), K).sum(0)
    targets = {"multiclass": classes, "multilabel": labels}[name]
    guessed = {"multiclass": logits.argmax(1), "multilabel": (logits > 0).int()}[name]
    absent = torch.tensor([1, 4, 6])
    assert (torch.isin(guessed, absent) if name == "multiclass" else guessed[:, absent]).any()
    found = computed(Task(name, K), logits, targets)
    macro = {"average": "macro", "zero_division": 0, "labels": present}
    assert found["val/precision"] == pytest.approx(by_sk(sk.precision_score, targets, guessed, **macro))
    assert found["val/recall"] == pytest.approx(by_sk(sk.recall_score, targets, guessed, **macro))
    assert found["val/f1"] == pytest.approx(by_sk(sk.f1_score, targets, guessed, **macro))


def test_labels_that_no_image_has_at_all_make_a_mean_of_0(logits):
    assert computed(Task("multilabel", K), logits, torch.zeros(B, K))["val/f1"] == 0


def test_regression_takes_targets_without_a_second_dimension(logits):
    numbers, targets = logits[:, :1], torch.arange(B)
    task = Task("regression", 1)
    torch.testing.assert_close(task.loss(numbers, targets), (numbers[:, 0] - targets).square().mean())
    assert computed(task, numbers, targets)["val/mae"] == pytest.approx((numbers[:, 0] - targets).abs().mean().item())


def test_multiclass_metrics_are_those_of_scikit_learn(logits, classes):
    found = computed(Task("multiclass", K), logits, classes)
    guessed = logits.argmax(dim=1)
    macro = {"average": "macro", "zero_division": 0}
    assert found == pytest.approx(
        {
            "val/acc": by_sk(sk.accuracy_score, classes, guessed),
            "val/precision": by_sk(sk.precision_score, classes, guessed, **macro),
            "val/recall": by_sk(sk.recall_score, classes, guessed, **macro),
            "val/f1": by_sk(sk.f1_score, classes, guessed, **macro),
            "val/acc_top5": sk.top_k_accuracy_score(classes, logits.numpy(), k=5, labels=range(K)),
        }
    )


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_multiclass_metrics_make_no_matrix_of_classes_by_classes():
    logits = torch.randn(8, 300)
    with Largest() as largest:
        computed(Task("multiclass", 300), logits, torch.arange(8), batch_size=8)
    assert largest.numel == 8 * 300


@pytest.mark.parametrize(("num", "expected"), [(2, False), (5, False), (6, True)])
def test_top5_is_measured_only_where_it_can_fail(num, expected):
    assert ("acc_top5" in Task("multiclass", num).metrics("val/")) is expected


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.1, 0.3)])
def test_multilabel_metrics_are_those_of_scikit_learn(logits, labels, scale, shift):
    # Shifted logits all lie in [0, 1], where they could be taken for probabilities.
    logits = scale * logits.clamp(-3, 3) + shift
    guessed = (logits > 0).int()
    macro = {"average": "macro", "zero_division": 0}
    assert computed(Task("multilabel", K), logits, labels.float()) == pytest.approx(
        {
            "val/acc": (guessed == labels).float().mean().item(),
            "val/precision": by_sk(sk.precision_score, labels, guessed, **macro),
            "val/recall": by_sk(sk.recall_score, labels, guessed, **macro),
            "val/f1": by_sk(sk.f1_score, labels, guessed, **macro),
        }
    )


def test_metrics_take_the_most_probable_class_and_the_likely_labels(logits, classes, labels):
    noise = torch.rand(B, K, generator=torch.Generator().manual_seed(3))
    shares = (0.6 * F.one_hot(classes, K) + 0.4 * noise.softmax(1)).double()
    task = Task("multiclass", K)
    assert computed(task, logits, shares) == computed(task, logits, classes)
    task = Task("multilabel", K)
    assert computed(task, logits, 0.6 * labels + 0.3 * noise) == computed(task, logits, labels)


@pytest.mark.parametrize("num", [1, 3])
def test_regression_metrics_are_those_of_scikit_learn(num):
    targets = np.random.default_rng(0).normal(size=(B, num))
    guessed = targets + 0.5 * np.random.default_rng(1).normal(size=(B, num))
    found = computed(Task("regression", num), torch.tensor(guessed).float(), torch.tensor(targets))
    assert found == pytest.approx(
        {
            "val/mse": by_sk(sk.mean_squared_error, targets, guessed),
            "val/mae": by_sk(sk.mean_absolute_error, targets, guessed),
            "val/r2": by_sk(sk.r2_score, targets, guessed),
        },
        rel=1e-4,
    )


@pytest.mark.parametrize("name", MAIN_METRIC)
def test_main_metric_is_measured_and_its_mode_is_right(name, logits, classes, labels):
    numbers = {"multiclass": classes, "multilabel": labels, "regression": logits}[name]
    one_hot = F.one_hot(classes, K).float()
    perfect = {"multiclass": one_hot, "multilabel": 2.0 * labels - 1, "regression": logits}[name]
    metric, mode = MAIN_METRIC[name]
    best, usual = (computed(Task(name, K), guess, numbers)[metric] for guess in (perfect, logits.roll(1, dims=0)))
    assert best == {"max": 1.0, "min": 0.0}[mode]
    assert (best > usual) is (mode == "max")


def test_answers_are_what_a_user_reads():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.bfloat16)
    precise = logits.float()
    answers = {name: Task(name, 2).predict(logits) for name in MAIN_METRIC}
    assert {answer.dtype for answer in answers.values()} == {torch.float32, torch.float64}
    torch.testing.assert_close(answers["multiclass"], torch.tensor([[0.25, 0.75]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(answers["multilabel"], torch.tensor([[0.5, 0.75]]), atol=1e-3, rtol=0)
    torch.testing.assert_close(answers["regression"], precise.double())
    years = Task("regression", 2, standardisation=Standardisation((1990.0, 0.0), (6.0, 1e-6)))
    assert years.predict(logits)[0].tolist() == pytest.approx([1990, 1e-6 * float(precise[0, 1])], rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("multiclas", 3), "model.task: unknown task 'multiclas'; nearest: multiclass, "),
        (("multiclass", 3, 1.0), "model.label_smoothing: must be at least 0 and below 1, got 1.0"),
        (("multiclass", 3, -0.1), "model.label_smoothing: must be at least 0 and below 1, got -0.1"),
        (("multiclass", 1), "model.task: multiclass needs at least 2 classes, got 1"),
        (("multilabel", 1), "model.task: multilabel needs at least 2 classes, got 1"),
    ],
)
def test_task_that_cannot_be_is_refused(arguments, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        Task(*arguments)
