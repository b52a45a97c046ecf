"""Heads against scikit-learn's, which solves one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from probe_sets import clusters, scale
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from lit_ft.data.folds import make_folds
from lit_ft.probes.heads import basis as basis_file
from lit_ft.probes.heads import solver
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.solver import Problems, Targets, solve


def solved(basis: Basis, targets: Targets, l2: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights for scaled features, and the bias, of the head of one problem."""
    weights = torch.ones(len(basis)) if weights is None else weights
    problems = Problems(basis, targets, weights.unsqueeze(0), torch.tensor([0]), torch.tensor([l2]))
    ((_, heads),) = solve(problems, tolerance=1e-6)
    weight, bias = basis.heads(heads[0])
    return weight * basis.scale, bias + weight @ basis.mean


@pytest.mark.parametrize(("num", "width"), [(300, 20), (60, 200)])
@pytest.mark.parametrize("l2", [0.001, 0.1, 10.0])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_heads_equal_those_of_scikit_learn(num: int, width: int, l2: float, num_classes: int) -> None:
    features, classes = clusters(num, width, num_classes)
    is_binary = num_classes == 2  # for which scikit-learn has one output
    targets = (
        Targets("sigmoid", classes[:, None].double(), 1) if is_binary else Targets("softmax", classes, num_classes)
    )
    weight, bias = solved(Basis(features, dtype=torch.float64), targets, l2)
    scaled = scale(features)
    peer = LogisticRegression(C=1 / (l2 * num), tol=1e-9, max_iter=100_000).fit(scaled, classes.numpy())
    np.testing.assert_allclose(weight, peer.coef_, atol=1e-3 * np.abs(peer.coef_).max())
    np.testing.assert_allclose(bias, peer.intercept_, atol=1e-3)
    logits = torch.from_numpy(scaled) @ weight.T + bias
    predicted = (logits[:, 0] > 0).long() if is_binary else logits.argmax(dim=1)
    assert predicted.tolist() == peer.predict(scaled).tolist()


def test_float32_comes_as_near(tmp_path: Path) -> None:
    features, classes = clusters(200, 50, 4)
    targets = Targets("softmax", classes, 4)
    exact, rough = (solved(Basis(features, dtype=dtype), targets, 0.05)[0] for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(rough, exact, atol=1e-3 * float(exact.abs().max()), rtol=0)


@pytest.mark.parametrize(("num", "width"), [(300, 20), (40, 80)])
def test_regression_is_ridge(num: int, width: int) -> None:
    features, classes = clusters(num, width, 3)
    values = torch.randn(num, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + classes[:, None]
    weight, bias = solved(Basis(features, dtype=torch.float64), Targets("squared", values, 2), 0.03)
    scaled = scale(features)
    peer = Ridge(alpha=0.03 * num).fit(scaled, values.numpy())
    np.testing.assert_allclose(weight, peer.coef_, atol=1e-6)
    np.testing.assert_allclose(bias, peer.intercept_, atol=1e-6)


def test_weights_of_images_are_those_of_scikit_learn() -> None:
    features, classes = clusters(90, 12, 3)
    counts = torch.arange(90) % 4  # some images do not count
    weight, _ = solved(Basis(features, dtype=torch.float64), Targets("softmax", classes, 3), 0.02, counts)
    scaled = scale(features)
    peer = LogisticRegression(C=1 / (0.02 * int(counts.sum())), tol=1e-9, max_iter=100_000)
    peer.fit(scaled, classes.numpy(), sample_weight=counts.numpy())
    np.testing.assert_allclose(weight, peer.coef_, atol=1e-3 * np.abs(peer.coef_).max())


def test_labels_are_problems_of_their_own_and_positives_count_as_weighted() -> None:
    features, classes = clusters(120, 10, 4)
    labels = torch.stack([classes == 0, classes < 3], dim=1).double()
    positive_weight = torch.tensor([3.0, 0.5])
    basis = Basis(features, dtype=torch.float64)
    weight, bias = solved(basis, Targets("sigmoid", labels, 2, positive_weight), 0.01)
    scaled = scale(features)
    for label in range(2):
        is_positive = labels[:, label].numpy() > 0
        counts = np.where(is_positive, positive_weight[label].item(), 1.0)
        peer = LogisticRegression(C=1 / (0.01 * 120), tol=1e-9, max_iter=100_000)
        peer.fit(scaled, is_positive, sample_weight=counts)
        np.testing.assert_allclose(weight[label], peer.coef_[0], atol=1e-3 * np.abs(peer.coef_).max())
        np.testing.assert_allclose(bias[label], peer.intercept_[0], atol=1e-3)


def test_problems_solved_together_equal_those_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = clusters(80, 30, 3)
    basis, targets = Basis(features, dtype=torch.float64), Targets("softmax", classes, 3)
    samples = torch.stack([torch.arange(80) % 5 != fold for fold in range(5)]).double()
    sample = torch.arange(5).repeat_interleave(3)
    l2 = torch.tensor([0.001, 0.1, 10.0]).repeat(5)
    together = torch.cat([heads for _, heads in solve(Problems(basis, targets, samples, sample, l2), 1e-6)])
    monkeypatch.setattr(solver, "_MEMORY", 1)  # each problem is a part of its own
    parts = list(solve(Problems(basis, targets, samples, sample, l2), 1e-6))
    assert [indices.tolist() for indices, _ in parts] == [[i] for i in range(15)]
    torch.testing.assert_close(together, torch.cat([heads for _, heads in parts]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("width", [15, 400])
def test_features_in_a_file_are_read_in_blocks(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = clusters(300, width, 3)
    np.save(tmp_path / "features.npy", features.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "features.npy", mmap_mode="c"))
    monkeypatch.setattr(basis_file, "_BLOCK", 1 << 12)
    blocks = Basis(mapped, dtype=torch.float64, keep=0)
    whole = Basis(features, dtype=torch.float64)
    expected = solved(whole, Targets("softmax", classes, 3), 0.1)
    torch.testing.assert_close(solved(blocks, Targets("softmax", classes, 3), 0.1), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        blocks[torch.tensor([299, 4])].abs(), whole[torch.tensor([299, 4])].abs(), atol=1e-6, rtol=1e-5
    )


def test_constant_features_leave_the_shares_of_the_classes() -> None:
    features = torch.full((10, 6), 0.1)
    classes = torch.tensor([0] * 6 + [1] * 3 + [2])
    basis = Basis(features)
    weight, bias = solved(basis, Targets("softmax", classes, 3), 0.1)
    assert not weight.any()
    torch.testing.assert_close(bias.softmax(dim=0), torch.tensor([0.6, 0.3, 0.1]).double(), atol=1e-4, rtol=0)


def test_one_image_is_predicted() -> None:
    _, bias = solved(Basis(torch.randn(1, 4)), Targets("sigmoid", torch.tensor([[1.0]]), 1), 0.1)
    assert bias > 2


def test_classes_that_a_plane_separates_have_an_optimum_too() -> None:
    features = torch.cat([torch.full((20, 3), -1.0), torch.full((20, 3), 1.0)]) + torch.randn(40, 3) / 100
    classes = (torch.arange(40) >= 20).long()
    weight, _ = solved(Basis(features, dtype=torch.float64), Targets("softmax", classes, 2), 1e-4)
    scaled = scale(features)
    # Two outputs of opposite weights w and -w have the penalty of one output with weight 2 w and half the strength.
    peer = LogisticRegression(C=2 / (1e-4 * 40), tol=1e-10, max_iter=100_000).fit(scaled, classes.numpy())
    np.testing.assert_allclose(weight[1] - weight[0], peer.coef_[0], atol=1e-3 * np.abs(peer.coef_).max())


def test_heads_are_solved_in_full_precision_whatever_a_trainer_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = clusters(60, 8, 3)
    evaluate, scaled, seen = Problems.value_and_gradient, Basis._scale, []

    def note() -> None:
        seen.append(torch.get_float32_matmul_precision())

    basis = Basis(features, keep=0)
    monkeypatch.setattr(Problems, "value_and_gradient", lambda *given: note() or evaluate(*given))
    torch.set_float32_matmul_precision("high")
    try:
        cross_validate(basis, Targets("softmax", classes, 3), make_folds(classes, repeats=1))
        assert len(seen) > 10
        monkeypatch.setattr(Basis, "_scale", lambda *given: note() or scaled(*given))
        assert basis[:5].shape == (5, 9)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}
