import math

import pytest
import torch

from lit_ft.evaluation.drift import relative_drift


def test_drift_is_the_norm_of_all_changes_by_that_of_all_weights():
    pairs = [(torch.tensor([3.0]), torch.tensor([3.0])), (torch.tensor([0.0, 4.0]), torch.tensor([1.0, 4.0]))]
    assert relative_drift(pairs) == pytest.approx(0.2)  # 1 of 5


def test_drift_of_zeros_or_nothing_is_unknown():
    assert math.isnan(relative_drift([]))
    assert math.isnan(relative_drift([(torch.zeros(2), torch.ones(2))]))
