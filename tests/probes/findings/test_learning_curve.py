"""Learning curves and what follows from them."""

from __future__ import annotations

import math

import pytest
import torch
from probe_sets import clusters

from lit_ft.data.folds import make_folds
from lit_ft.probes.findings.learning_curve import LearningCurve, _draw_order, extrapolate, learning_curve
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.solver import Targets


def curve_of(errors: list[float], sizes: list[int], noise: float = 0.0) -> LearningCurve:
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor(errors)[:, None] + noise * torch.randn(len(errors), 12, generator=generator)
    return LearningCurve(sizes, 1 - draws.double(), torch.zeros(len(errors), 2))


def test_more_images_score_higher_and_all_score_as_in_cross_validation() -> None:
    features, classes = clusters(240, 24, 3)
    basis, targets, folds = Basis(features), Targets("softmax", classes, 3), make_folds(classes, 4, 2)
    curve = learning_curve(basis, targets, folds, (0.01, 0.1, 1.0))
    assert curve.sizes == [3, 5, 10, 20, 60]
    means = curve.accuracies.mean(dim=1)
    assert means[0] < means[2] < means[-1]
    whole = cross_validate(basis, targets, folds, strengths=(0.01, 0.1, 1.0))
    assert float(means[-1]) == pytest.approx(whole.accuracy, abs=0.01)  # as solved heads differ by rounding
    # Each class has the same number of images, so that the mean recall is the accuracy.
    torch.testing.assert_close(curve.recalls.mean(dim=1), means)


def test_draws_that_are_solved_apart_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = clusters(120, 24, 3)
    basis, targets, folds = (
        Basis(features, dtype=torch.float64),
        Targets("softmax", classes, 3),
        make_folds(classes, 4, 2),
    )
    together = learning_curve(basis, targets, folds, (0.1, 1.0))
    monkeypatch.setattr("lit_ft.probes.findings.learning_curve._TOGETHER", 1)
    apart = learning_curve(basis, targets, folds, (0.1, 1.0))
    # Heads are solved to 3% of their size, so that an image near the border may fall to either side.
    torch.testing.assert_close(apart.accuracies, together.accuracies, atol=0.07, rtol=0)
    torch.testing.assert_close(apart.recalls.mean(dim=1), together.recalls.mean(dim=1), atol=0.02, rtol=0)


def test_draws_nest_and_keep_to_what_may_be_drawn() -> None:
    classes = torch.tensor([0] * 6 + [1] * 4)
    allowed = torch.ones(2, 10, dtype=torch.bool)
    allowed[0, :3] = False
    order = _draw_order(classes, allowed, seed=0)
    assert sorted(order[0, 3:6].tolist()) == [0, 1, 2]
    assert (order[0, :3] == 10).all()
    assert sorted(order[1, :6].tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(order[1, 6:].tolist()) == [0, 1, 2, 3]


def test_extrapolation_finds_a_power_law() -> None:
    sizes = [3, 5, 10, 20, 50, 100]
    outlook = extrapolate(curve_of([0.05 + 0.6 * n**-0.5 for n in sizes], sizes), gain=0.01)
    assert outlook is not None
    # 0.6 n**-0.5 is 0.05 at n = 144, a point less than the 0.06 at 100.
    assert outlook.more == pytest.approx((44, 44, 44), abs=0.5)
    assert outlook.limit == pytest.approx((0.95, 0.95, 0.95), abs=1e-3)


def test_interval_widens_with_the_noise_of_the_draws() -> None:
    sizes = [3, 5, 10, 20, 50, 100]
    outlook = extrapolate(curve_of([0.05 + 0.6 * n**-0.5 for n in sizes], sizes, noise=0.02))
    assert outlook is not None
    middle, least, most = outlook.more
    assert least < 44 < most
    assert most - least > 10
    assert least <= middle <= most


def test_no_number_of_images_suffices_on_a_plateau() -> None:
    sizes = [3, 5, 10, 20, 50]
    outlook = extrapolate(curve_of([0.3, 0.2, 0.2, 0.2, 0.2], sizes))
    assert outlook is not None
    assert math.isinf(outlook.more[0])
    assert outlook.limit[0] == pytest.approx(0.8, abs=0.02)


def test_too_few_sizes_have_no_outlook() -> None:
    assert extrapolate(curve_of([0.3, 0.2, 0.1], [3, 5, 8])) is None


def test_fitted_curve_goes_through_the_points_and_beyond_to_the_limit() -> None:
    sizes = [3, 5, 10, 20, 50, 100]
    found = extrapolate(curve_of([0.05 + 0.5 / size for size in sizes], sizes))
    assert found is not None
    first, last = found.fitted[0], found.fitted[-1]
    assert (first[0], last[0]) == (pytest.approx(3), pytest.approx(400))
    for size, middle, low, high in found.fitted:
        assert middle == pytest.approx(1 - 0.05 - 0.5 / size, abs=1e-6)
        assert low <= middle <= high
    ratios = [other[0] / one[0] for one, other in zip(found.fitted, found.fitted[1:], strict=False)]
    assert min(ratios) == pytest.approx(max(ratios))


def test_interval_of_the_fitted_curve_is_wider_where_draws_differ() -> None:
    sizes = [3, 5, 10, 20, 50, 100]
    found = extrapolate(curve_of([0.05 + 0.5 / size for size in sizes], sizes, noise=0.02))
    assert found is not None
    assert all(low < middle < high for _, middle, low, high in found.fitted[-3:])
