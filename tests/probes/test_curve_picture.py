"""Picture of a learning curve."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from lit_ft.probes.curve_picture import describe_curve, draw_curve
from lit_ft.probes.findings.image_findings import LabelsNeeded

LABELS = LabelsNeeded(
    [3, 10, 100], [0.6, 0.7, 0.8], [(0.55, 0.65), (0.66, 0.74), (0.78, 0.82)],
    [(3.0, 0.61, 0.5, 0.7), (30.0, 0.74, 0.7, 0.78), (100.0, 0.8, 0.79, 0.81), (300.0, 0.83, 0.8, 0.9)],
    None, None, {}, "ant", None,
)  # fmt: skip


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def places(svg: str, name: str) -> list[tuple[float, float]]:
    """The corners of a line or an area."""
    (found,) = [part for part in read(svg) if part.get("class") == name and part.get("points")]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in (found.get("points") or "").split())]


def marks(svg: str, anchor: str) -> dict[str, tuple[float, float]]:
    """The texts of an axis, and where they are."""
    texts = [part for part in read(svg) if part.tag == "text" and part.get("text-anchor") == anchor]
    return {part.text or "": (float(part.get("x") or 0), float(part.get("y") or 0)) for part in texts}


def test_sizes_are_on_a_logarithmic_axis_and_more_is_higher() -> None:
    svg = draw_curve(LABELS)
    first, second, third = places(svg, "line")
    assert (third[0] - second[0]) / (second[0] - first[0]) == pytest.approx(1 / 0.523, abs=0.01)  # log10(10 / 3)
    assert first[1] > second[1] > third[1]
    assert second[1] - third[1] == pytest.approx(first[1] - second[1], abs=0.2)
    below = marks(svg, "middle")
    assert list(below) == ["5", "10", "20", "50", "100", "200", "images a class"]
    assert (below["10"][0], below["100"][0]) == (pytest.approx(second[0]), pytest.approx(third[0]))
    left = marks(svg, "end")
    assert left["60%"][1] - 4 == pytest.approx(first[1], abs=0.1)
    assert left["80%"][1] - 4 == pytest.approx(third[1], abs=0.1)


def test_bands_are_around_their_lines_and_the_fitted_one_lies_ahead() -> None:
    svg = draw_curve(LABELS)
    line, band = places(svg, "line"), places(svg, "band")
    for (x, y), low, high in zip(line, band[:3], reversed(band[3:]), strict=True):
        assert low[0] == high[0] == x
        assert low[1] > y > high[1]
    ahead = places(svg, "fit")
    assert min(x for x, _ in ahead) == line[-1][0]
    assert len(ahead) == 4
    dashed = places(svg, "dashed")
    assert len(dashed) == 4
    assert all(one[0] < other[0] for one, other in pairwise(dashed))


@pytest.mark.parametrize("labels", [LABELS, replace(LABELS, accuracies=[0.0, 0.5, 1.0], intervals=[(0.0, 1.0)] * 3)])
def test_everything_is_within_the_picture(labels: LabelsNeeded) -> None:
    svg = draw_curve(labels)
    width, height = map(float, (read(svg).get("viewBox") or "").split()[2:])
    assert (width, height) == (440, 270)
    for name in ("line", "band", "dashed", "fit"):
        assert all(44 <= x <= 428 and 34 <= y <= 226.1 for x, y in places(svg, name))


def test_curve_that_is_not_fitted_has_no_dashes() -> None:
    svg = draw_curve(replace(LABELS, fitted=[]))
    assert "dashed" not in svg
    assert "class='fit'" not in svg
    assert "measured, 95% interval" in svg
    assert len(places(svg, "line")) == 3


def test_single_size_is_drawn() -> None:
    svg = draw_curve(replace(LABELS, sizes=[3], accuracies=[1.0], intervals=[(1.0, 1.0)], fitted=[]))
    assert len(places(svg, "line")) == 1


def test_words_say_what_is_seen() -> None:
    measured = "Accuracy by images a class: 60.0% with 3, 70.0% with 10, 80.0% with 100"
    assert describe_curve(LABELS) == f"{measured}; fitted: 83.0% (80.0% to 90.0%) with 300"
    assert read(draw_curve(LABELS)).get("aria-label") == describe_curve(LABELS)
    assert read(draw_curve(LABELS)).get("role") == "img"


def test_nothing_is_fetched_and_nothing_runs() -> None:
    assert not re.search(r"https?:|<script|<image|href|url[(]", draw_curve(LABELS))
