"""Comparison of outputs."""

import math

import numpy as np
import pytest

from lit_ft.export.verification import compare_outputs

EXPECTED = np.array([[0.2, 0.8], [0.5, 0.5], [0.4, 0.6]])


@pytest.mark.parametrize(
    ("found", "holds", "changed", "largest"),
    [
        (EXPECTED, True, [], 0.0),
        (EXPECTED + np.array([0.0009, -0.0009]), True, [], 0.0009),  # of two that are equal, any may be the first
        (EXPECTED + np.array([0.0011, 0.0]), False, [], 0.0011),
        (EXPECTED[:, ::-1], False, [0, 2], 0.6),
        (EXPECTED * math.nan, False, [], math.nan),
    ],
)
def test_difference_and_class_of_each_image_count(found, holds, changed, largest):
    agreement = compare_outputs(EXPECTED, found, [1e-3, 1e-3], "multiclass")
    assert (agreement.holds, agreement.largest) == (holds, pytest.approx(largest, abs=1e-12, nan_ok=True))
    if not math.isnan(largest):
        assert agreement.changed == changed


def test_close_classes_may_change_within_a_tie():
    expected = np.array([[0.501, 0.499]])
    found = np.array([[0.499, 0.501]])
    agreement = compare_outputs(expected, found, [0.05, 0.05], "multiclass")
    assert (agreement.changed, agreement.holds) == ([0], False)
    assert compare_outputs(expected, found, [0.05, 0.05], "multiclass", tie=0.05).holds


def test_numbers_have_a_tolerance_each_and_no_class():
    expected = np.array([[1000.0, 0.001]])
    assert compare_outputs(expected, expected + np.array([0.9, 0.0]), [1.0, 1e-6], "regression").holds
    assert not compare_outputs(expected, expected + np.array([0.0, 2e-6]), [1.0, 1e-6], "regression").holds
    assert compare_outputs(expected, expected[:, ::-1], [1e4, 1e4], "regression").changed == []


def test_float32_is_compared_with_what_it_was_rounded_from():
    agreement = compare_outputs(EXPECTED, EXPECTED.astype(np.float32), [1e-3, 1e-3], "multilabel")
    assert 0 < agreement.largest < 1e-7
