import pytest
import torch

from lit_ft.standardise import Standardisation


@pytest.mark.parametrize("offset", [0.0, 3e5, 1.7e9])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e4])
def test_targets_become_mean_0_and_deviation_1_and_come_back(offset, scale):
    targets = offset + scale * torch.tensor([[0.0], [1.0], [2.0], [5.0]], dtype=torch.float64)
    found = Standardisation.of(targets)
    standard = found.standardise(targets)
    eps = torch.finfo(torch.float64).eps * (1 + offset / scale)
    torch.testing.assert_close(standard.mean(), torch.tensor(0.0).double(), atol=16 * eps, rtol=0)
    torch.testing.assert_close(standard.square().mean().sqrt(), torch.tensor(1.0).double(), atol=16 * eps, rtol=0)
    torch.testing.assert_close(found.restore(standard), targets, atol=scale * 16 * eps, rtol=0)
    assert found.centred(standard).mean().abs() < scale * 16 * eps


def test_target_that_never_varies_is_subtracted_and_not_scaled():
    targets = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])
    found = Standardisation.of(targets)
    assert found.scale[0] == 1.0
    assert found.mean[0] == float(targets[0, 0])
    assert found.standardise(targets)[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert found.standardise(targets)[:, 1].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_squares_of_large_targets_do_not_overflow():
    found = Standardisation.of(torch.tensor([[1e200], [-1e200]], dtype=torch.float64))
    assert found == Standardisation((0.0,), (1e200,))


def test_numbers_without_a_second_dimension_are_of_one_target():
    found = Standardisation((10.0,), (2.0,))
    assert found.standardise(torch.tensor([12, 8])).tolist() == [[1.0], [-1.0]]


def test_half_precision_answers_come_back_with_all_digits():
    found = Standardisation((1990.0,), (5.0,))
    restored = found.restore(torch.tensor([[0.2]], dtype=torch.bfloat16))
    assert restored.dtype == torch.float64
    assert float(restored) == pytest.approx(1991.0, abs=5 * 2**-9)


def test_what_is_prepared_in_inference_mode_serves_training_later():
    found = Standardisation((123.0,), (7.0,))
    with torch.inference_mode():
        found.restore(torch.zeros(1, 1))
    values = torch.ones(1, 1, requires_grad=True)
    found.restore(values).sum().backward()
    assert values.grad.item() == 7.0
