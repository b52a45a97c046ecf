import re

import processes
import pytest
import torch
from rounding import by_sk
from sklearn import metrics as sk
from torch import nn
from torchmetrics import MeanSquaredError

from lit_ft.tasks.metrics import R2, MeanLoss, PreciseSums


class SquaredError(PreciseSums, MeanSquaredError):
    pass


def r2(preds, targets, sizes=(7, 7, 7)):
    metric = R2(targets.shape[1])
    for pred, target in zip(preds.split(sizes), targets.split(sizes), strict=True):
        metric.update(pred, target)
    return metric


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (3e5, 1), (3e5, 1e-6), (0, 1e-6), (-1e9, 1e-3), (0, 1e30)])
def test_r2_is_that_of_scikit_learn_at_any_offset_and_scale(offset, scale):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(21, 2, generator=generator, dtype=torch.float64)
    preds = targets + 0.5 * torch.randn(21, 2, generator=generator, dtype=torch.float64)
    targets, preds = offset + scale * targets, offset + scale * preds
    expected = by_sk(sk.r2_score, (targets - offset) / scale, (preds - offset) / scale)
    assert float(r2(preds, targets).compute()) == pytest.approx(expected, abs=1e-5)


def test_r2_of_an_untrained_model_is_not_1_where_targets_are_small():
    targets = 1e-6 * torch.arange(21.0).view(21, 1)
    assert float(r2(torch.zeros(21, 1), targets).compute()) == pytest.approx(1 - 2870 / 770)


def test_target_of_one_value_has_no_r2_and_is_left_out():
    targets = torch.stack([torch.full((21,), 0.1), torch.arange(21.0)], dim=1).double()
    preds = targets + 1
    one = float(r2(preds[:, 1:], targets[:, 1:]).compute())
    assert float(r2(preds, targets).compute()) == pytest.approx(one)
    assert r2(preds[:, :1], targets[:, :1]).compute().isnan()
    single = R2(1)
    single.update(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert single.compute().isnan()


@pytest.mark.parametrize("metric", [R2(1), MeanLoss(), SquaredError()], ids=["r2", "loss", "mse"])
def test_sums_stay_float64_where_a_network_is_converted_to_bfloat16(metric):
    nn.ModuleList([metric]).to(torch.bfloat16)
    metric.reset()
    nn.ModuleList([metric]).bfloat16()
    states = [getattr(metric, name) for name in metric._defaults]
    assert {state.dtype for state in states if state.is_floating_point()} == {torch.float64}


def test_sums_are_float32_on_a_device_without_float64():
    def to_mps(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return tensor

    metric = SquaredError()._apply(to_mps)
    for _ in range(2):
        assert metric.sum_squared_error.dtype == torch.float32
        metric.update(torch.ones(2), torch.zeros(2))
        assert metric.compute() == 1
        metric.reset()


@pytest.mark.long
def test_mean_loss_counts_more_values_than_float32_can_tell_apart():
    metric = MeanLoss()
    metric.update(torch.zeros(1).expand(2**24))
    metric.update(torch.ones(1))
    assert float(metric.weight) == 2**24 + 1


def test_mean_of_losses_that_are_nan_or_infinite_is():
    for value in (torch.nan, torch.inf):
        metric = MeanLoss()
        metric.update(torch.tensor([1.0, value]))
        assert not metric.compute().isfinite()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return processes.launch(tmp_path_factory.mktemp("ranks"), "measure", "diverge")


def test_regression_is_measured_over_all_processes_in_one_unit(ranks):
    one, other = (rank["measure"]["regression"] for rank in ranks)
    assert one["standardisation"] == other["standardisation"]
    assert one["standardisation"].mean == (1987.5,)  # of the first process's years
    assert one["logits"].equal(other["logits"])
    targets = torch.cat(processes.YEARS).double()
    answers = one["logits"].double() * one["standardisation"].scale[0] + 1987.5
    for name, expected in (
        ("mse", by_sk(sk.mean_squared_error, targets, answers)),
        ("mae", by_sk(sk.mean_absolute_error, targets, answers)),
        ("r2", by_sk(sk.r2_score, targets, answers)),
    ):
        assert one["metrics"][f"val/{name}"] == other["metrics"][f"val/{name}"] == pytest.approx(expected, rel=1e-5)


def test_classes_that_no_process_has_are_left_out_and_told_once(ranks):
    one, other = (rank["measure"]["multiclass"] for rank in ranks)
    targets, guessed = torch.cat(processes.LABELS), one["logits"].argmax(1)
    macro = {"average": "macro", "zero_division": 0, "labels": [0, 1, 2, 5]}
    expected = {
        "val/precision": by_sk(sk.precision_score, targets, guessed, **macro),
        "val/recall": by_sk(sk.recall_score, targets, guessed, **macro),
        "val/f1": by_sk(sk.f1_score, targets, guessed, **macro),
    }
    for found in (one, other):
        assert {name: found["metrics"][name] for name in expected} == pytest.approx(expected)
    assert one["told"] == [
        "val: no image of 3 of 7 classes (3, 4, 6); they are left out of the means of f1, precision, recall"
    ]
    assert other["told"] == []


def test_training_loss_of_an_epoch_is_the_mean_over_all_processes(ranks):
    for task in ("regression", "multiclass"):
        one, other = (rank["measure"][task] for rank in ranks)
        assert len(one["losses"]) == len(other["losses"]) == 2
        assert one["losses"] != other["losses"]
        mean = sum(one["losses"] + other["losses"]) / 4
        assert one["mean_loss"] == other["mean_loss"] == pytest.approx(mean, rel=1e-6)


def test_loss_that_is_not_finite_in_one_process_ends_all_with_the_same_step(ranks):
    text = r"train/loss is not finite in step 3 \(learning rate 0.05, largest gradient in \w+\): lower"
    assert {bool(re.match(text, rank["diverge"])) for rank in ranks} == {True}
    assert ranks[0]["diverge"] == ranks[1]["diverge"]
