"""The picture of the stages."""

import math
import re
from xml.etree import ElementTree

import pytest

from lit_ft.evaluation.explanations.stage_picture import draw_stages
from lit_ft.evaluation.explanations.transfer import StageChange, Transfer

STAGES = [
    StageChange("stem", 0.0, 1.0, 0.5, 0.5),
    StageChange("layer4", 0.2, 0.75, 0.6, 0.8),
    StageChange("head", 0.1),
]


def draw(stages=STAGES, score="accuracy"):
    return ElementTree.fromstring(draw_stages(Transfer(stages, score=score)))


def found(root, kind):
    return [part for part in root.iter() if part.get("class") == kind]


def test_bars_are_as_long_as_what_they_stand_for():
    bars = found(draw(), "bar")
    widths = [float(bar.get("width")) for bar in bars]
    assert len(bars) == 5  # three drifts, and two likenesses
    assert widths[1] == pytest.approx(2 * widths[2], abs=0.2)  # 0.2 and 0.1
    assert widths[0] == 1.0  # still to be seen
    assert widths[4] == pytest.approx(0.75 * widths[3], abs=0.2)
    assert len({bar.get("y") for bar in bars}) == 3  # a row a stage


def test_scores_before_and_after_are_a_ring_and_a_dot():
    root = draw()
    rings, dots = ([float(mark.get("cx")) for mark in found(root, kind)] for kind in ("ring", "dot"))
    assert len(rings) == len(dots) == 2
    assert rings[0] == dots[0]
    assert dots[1] - rings[1] == pytest.approx(2 * (rings[1] - rings[0]), abs=0.3)  # 0.2 and 0.1


def test_panels_of_what_is_not_known_are_left_out():
    assert draw_stages(Transfer([StageChange("stem"), StageChange("head")])) == ""
    titles = [title.text for title in found(draw([StageChange("stem", 0.1)]), "title")]
    assert titles == ["Drift of the weights"]
    only_after = draw([StageChange("stem", after=0.5), StageChange("body", after=0.7)])
    assert [title.text for title in found(only_after, "title")] == ["Accuracy of linear probes"]
    assert (len(found(only_after, "dot")), found(only_after, "ring")) == (2, [])
    assert found(draw(score="R2"), "title")[2].text == "R2 of linear probes"


def test_all_is_inside_the_picture_and_values_that_are_below_zero_too():
    stages = [StageChange("stem", 0.1, -0.25, -0.5, 0.9), StageChange("a long name of a stage", 3.0, 0.9, 0.1, 0.2)]
    root = draw(stages)
    width, height = map(float, root.get("viewBox").split()[2:])
    for part in root.iter():
        for key in ("x", "x1", "x2", "cx"):
            assert 0 <= float(part.get(key, 0)) <= width
        for key in ("y", "y1", "y2", "cy"):
            assert 0 <= float(part.get(key, 0)) <= height
    assert "-0.250" in [part.text for part in root.iter()]


def test_bars_of_stages_that_have_not_changed_begin_at_zero():
    root = draw([StageChange("stem", 0.0), StageChange("body", 0.0)])
    marks = [part.text for part in found(root, "unit") if part.get("text-anchor") == "middle"]
    assert (marks[0], marks[-1]) == ("0", "1")
    first = min(float(part.get("x1")) for part in found(root, "grid"))
    assert {float(bar.get("x")) for bar in found(root, "bar")} == {first}


def test_names_are_text_alone_and_the_picture_is_told_in_words():
    text = draw_stages(Transfer([StageChange("<b>'\"", 0.5, math.nan, 0.25)]))
    assert "<b>" not in text
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == "<b>'\": drift 0.500, probe before 0.250"
    assert not re.search(r"nan|inf\b", text)
