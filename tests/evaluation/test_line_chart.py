"""Line charts."""

import math
import re
from xml.etree import ElementTree

import pytest

from lit_ft.evaluation.line_chart import draw_lines, find_marks


def places(svg, colour="l0"):
    points = re.search(rf"<polyline class='line {colour}' points='([^']*)'", svg)[1]
    return [tuple(map(float, place.split(","))) for place in points.split()]


def test_points_lie_between_the_axes_in_proportion():
    svg = draw_lines({"loss": [(0, 0.0), (1, 0.5), (4, 1.0)]}, "epoch")
    (x0, y0), (x1, y1), (x2, y2) = places(svg)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5, abs=1e-3)
    assert y2 < y0  # upwards
    assert ElementTree.fromstring(svg).get("aria-label") == "loss from 0 to 1, by epoch"


def test_logarithmic_axis_has_equal_distances_for_equal_factors_and_no_zero():
    svg = draw_lines({"lr": [(0, 0.0), (1, 1e-4), (2, 1e-3), (3, 1e-2)]}, "epoch", log=True)
    ys = [y for _, y in places(svg)]
    assert len(ys) == 3
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.11)


def test_what_is_not_finite_is_left_out_and_nothing_is_no_picture():
    svg = draw_lines({"a": [(0, math.nan), (1, 1.0)], "b": [(0, math.inf)]}, "epoch")
    assert len(places(svg)) == 1
    assert ">b<" not in svg
    assert draw_lines({"a": []}, "epoch") == draw_lines({}, "epoch") == ""


def test_names_are_no_markup():
    svg = draw_lines({"<b>'x": [(0, 1.0)]}, "<i>", {0.0: "<u>"})
    assert ElementTree.fromstring(svg) is not None
    assert not re.search("<[biu]>", svg)


@pytest.mark.parametrize("scale", [1e-9, 0.37, 12345.0])
def test_marks_enclose_the_range_and_are_few(scale):
    for low, high in ((0.0, 1.0), (0.3, 1.7), (-2.0, 5.1), (3.0, 3.0)):
        marks = find_marks(low * scale, high * scale)
        assert marks[0] <= low * scale + 1e-8 * scale
        assert marks[-1] >= high * scale - 1e-8 * scale
        assert 2 <= len(marks) <= 8
