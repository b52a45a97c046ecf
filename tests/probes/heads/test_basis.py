"""Features in the coordinates of their principal components."""

from __future__ import annotations

import pytest
import torch

from lit_ft.probes.heads.basis import Basis


@pytest.mark.parametrize("keep", [2 << 30, 0])
def test_part_has_the_coordinates_of_its_images(keep: int) -> None:
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    basis = Basis(features, keep=keep)
    rows = torch.tensor([3, 1, 17])
    part = basis.part(rows)
    assert len(part) == 3
    torch.testing.assert_close(part[slice(0, 3)], basis[rows])
    torch.testing.assert_close(part[torch.tensor([2])], basis[torch.tensor([17])])
    assert len(basis) == 30
