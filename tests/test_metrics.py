import pytest
import torch
from sklearn import metrics as sk
from torch import nn
from torchmetrics import MeanSquaredError

from lit_ft.metrics import R2, MeanLoss, PreciseSums


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
    expected = sk.r2_score((targets - offset) / scale, (preds - offset) / scale)
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
