"""Outputs of a model and targets of all kinds."""

import pytest
import torch

B, K = 40, 7


@pytest.fixture
def logits():
    return torch.randn(B, K, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def classes():
    return torch.randint(K, (B,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.randint(2, (B, K), generator=torch.Generator().manual_seed(2))
