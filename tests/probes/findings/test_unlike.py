"""Images apart from their class."""

from __future__ import annotations

import pytest
import torch

from lit_ft.probes.findings import unlike
from lit_ft.probes.findings.unlike import distances_to_neighbours


def test_distance_is_to_the_kth_other_of_the_class() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 1.5, 0.05])
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([1.0, 5.0, 2.0, 3.0, 1.0])[:, None]
    classes = torch.tensor([0, 0, 0, 0, 1])
    found = distances_to_neighbours(features, classes, num_neighbours=2)
    chords = 2 * (torch.tensor([0.3, 0.2, 0.3, 1.4]) / 2).sin()
    torch.testing.assert_close(found[:4], chords, atol=1e-3, rtol=0)
    assert found[4].isnan()


def test_fewer_others_than_neighbours() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert distances_to_neighbours(features, torch.tensor([0, 0]), 5).tolist() == pytest.approx([2**0.5] * 2)


def test_images_of_another_kind_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(40, 16, generator=generator) * 0.3 + 1
    far = -torch.randn(3, 16, generator=generator).abs()
    features, classes = torch.cat([near, far]), torch.zeros(43, dtype=torch.long)
    expected = distances_to_neighbours(features, classes)
    assert set(expected.argsort()[-3:].tolist()) == {40, 41, 42}
    monkeypatch.setattr(unlike, "_MOST_REFERENCES", 15)  # every third image stands for the class
    assert set(distances_to_neighbours(features, classes).argsort()[-3:].tolist()) == {40, 41, 42}
