"""Line charts."""

import math
import re
from xml.etree import ElementTree

import pytest

from lit_ft.evaluation.line_chart import draw_lines, draw_matrix, draw_points, draw_spans, find_marks


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


def test_names_of_many_lines_are_in_rows_within_the_picture():
    svg = ElementTree.fromstring(draw_lines({f"stage number {k}": [(0, k), (1, k)] for k in range(8)}, "epoch"))
    left, top, width, _ = map(float, svg.get("viewBox").split())
    names = [text for text in svg.iter("text") if text.text.startswith("stage number")]
    places = [(float(text.get("x")), float(text.get("y"))) for text in names]
    assert len(set(places)) == 8
    assert all(left <= x and x + 6.6 * 14 <= width and y >= top for x, y in places)
    assert len({y for _, y in places}) == 3
    kinds = [line.get("class") for line in svg.iter("polyline")]
    assert kinds == [*(f"line l{k}" for k in range(6)), "line l0 dashed", "line l1 dashed"]


def test_points_say_what_they_are_and_whole_epochs_have_marks():
    svg = draw_lines({"val/acc": [(0, 0.5), (1, 0.75), (2, 0.7)]}, "epoch", {1.0: "unfrozen: stem", 9.0: "later"})
    assert "<title>val/acc: 0.75 (epoch 1)</title>" in svg
    assert [mark for mark in ("0", "1", "1.5", "2") if f">{mark}</text>" in svg] == ["0", "1", "2"]
    assert ("unfrozen: stem" in svg, "later" in svg) == (True, False)


def test_guide_widens_the_axes():
    (x, y), *_ = places(draw_lines({"share": [(0.4, 0.5), (0.5, 0.5)]}, "probability", guide=(0.0, 1.0)))
    assert x == pytest.approx(56 + 0.4 * (510 - 56), abs=0.1)
    assert y == pytest.approx((30 + 222) / 2, abs=0.1)


def test_spans_are_bars_in_proportion():
    svg = ElementTree.fromstring(draw_spans({"head": [(0, 4)], "<stem>": [(1, 2), (3, 4)]}, 4, "epoch"))
    bars = [bar for bar in svg.iter("rect") if bar.get("class") == "bar"]
    assert [bar.find("title").text for bar in bars] == [
        "head: epochs 0 to 3",
        "<stem>: epochs 1 to 1",
        "<stem>: epochs 3 to 3",
    ]
    whole, *parts = (float(bar.get("width")) for bar in bars)
    assert parts == pytest.approx([whole / 4] * 2, abs=0.1)
    assert svg.get("aria-label") == "epochs: head 0 to 4; <stem> 1 to 2, 3 to 4"


def test_points_on_equal_axes_lie_on_the_line_where_both_are_equal():
    svg = ElementTree.fromstring(draw_points({"a": (0.0, 0.0), "b": (5.0, 10.0), "no": (math.nan, 1.0)}, "true", "<i>"))
    first, other = ((float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle"))
    assert first == (56, 222)
    assert other == ((56 + 510) / 2, 30)
    assert draw_points({"a": (math.inf, 0.0)}, "true", "predicted") == ""


def test_matrix_has_a_cell_for_each_pair_that_has_images():
    svg = ElementTree.fromstring(draw_matrix(["ant", "a name that is far too long to be drawn"], [[3, 1], [0, 0]]))
    cells = {
        cell.find("title").text: (cell.get("class"), cell.get("opacity")) for cell in svg.iter("rect") if len(cell)
    }
    long = "a name that is far too long to be drawn"
    assert cells == {"ant, predicted ant: 3 of 4": ("hit", "0.81"), f"ant, predicted {long}: 1 of 4": ("miss", "0.44")}
    assert "a name that is far too …" in [text.text for text in svg.iter("text")]
