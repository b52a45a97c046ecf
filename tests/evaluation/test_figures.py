import pytest
import torch

from lit_ft.evaluation.figures import draw_confusion, draw_plan
from lit_ft.evaluation.lettering import Lettering
from lit_ft.unfreezing.strategies import make_plan

DOG = "\U0010fff1"  # a private character, which no font of any machine has
WHITE, GREY = (255, 255, 255), (102, 102, 102)


@pytest.fixture
def written(monkeypatch):
    """The lines that are written into pictures, and their colours, by their places."""
    lines, write = {}, Lettering.write

    def note(self, image, place, text, side="left", colour=(0, 0, 0)):
        lines[(round(place[0]), round(place[1]), text)] = colour
        write(self, image, place, text, side, colour)

    monkeypatch.setattr(Lettering, "write", note)
    return lines


def texts(written):
    return [text for *_, text in written]


@pytest.mark.parametrize("odd", [DOG, "a\nb", "\x07", "caf\udce9"])
def test_name_that_no_font_can_show_is_drawn_by_its_number(odd, written):
    note = "(# and a number: no font here has the name)"
    draw_confusion(torch.eye(3), ["ant", odd, "é"])
    assert [text for text in texts(written) if text in ("ant", odd, "#1", "é", note)] == [
        note, "ant", "ant", "#1", "#1", "é", "é",
    ]  # fmt: skip
    written.clear()
    draw_plan(make_plan("full", [odd, "head"], 1), [0], 1, {odd: 0.1})
    assert {"#0, lr 0.1", "head", "epoch", note} < set(texts(written))


MATRIX = torch.tensor([[3, 1, 0], [0, 5, 0], [0, 0, 0]])


def test_confusion_matrix_has_counts_shares_and_names(written):
    image = draw_confusion(MATRIX, ["ant", "bee", "cat"], "model")
    assert texts(written)[:3] == ["model", "true class by row, predicted class by column", ""]
    assert texts(written)[3:9:2] == ["ant", "bee", "cat"]  # each by its row and its column
    cells = texts(written)[9:]
    assert cells == ["75%", "3", "25%", "1", "100%", "5"]
    x, y = next(place[:2] for place in written if place[2] == "3")  # the middle of a cell, of 86 pixels

    def shade(row, column):
        return image.getpixel((x + 86 * column - 30, y + 86 * row + 30))

    shades = [[shade(row, column) for column in range(3)] for row in range(3)]
    assert shades[0][2] == shades[1][0] == shades[2][2] == (247, 251, 255)  # nothing
    assert shades[1][1] == (8, 48, 107)  # all
    darkness = [-sum(shade) for shade in (shades[0][2], shades[0][1], shades[0][0], shades[1][1])]
    assert darkness == sorted(darkness)
    assert len(set(darkness)) == 4
    colours = {text: colour for (*_, text), colour in written.items()}
    assert (colours["75%"], colours["25%"], colours["100%"]) == (WHITE, (0, 0, 0), WHITE)


def test_confusion_matrix_of_many_classes_has_no_numbers(written):
    names = [f"class {i}" for i in range(31)]
    image = draw_confusion(torch.eye(31), names)
    assert set(texts(written)) - {"", "true class by row, predicted class by column"} == set(names)
    assert image.width < 600


def test_long_names_are_shortened(written):
    draw_confusion(torch.eye(2), ["x" * 300, "bee"])
    assert "x" * 29 + "…" in texts(written)


def test_plan_has_a_bar_where_a_stage_trains_with_the_head_at_the_top(written):
    plan = make_plan("lp_ft", ["stem", "head"], 4, head_epochs=1)
    image = draw_plan(plan, [0], 4, {"head": 0.2, "stem": 0.1})
    places = {text: place for *place, text in written}
    marks = [places[str(epoch)] for epoch in (0, 1, 2, 3, 4) if str(epoch) in places]
    left, right = marks[0][0], marks[-1][0]
    first = left + (right - left) // 8  # the middle of the first epoch, and below of the third
    third = left + 5 * (right - left) // 8
    head, stem = (places[label][1] + 8 for label in ("head, lr 0.2", "stem, lr 0.1"))
    assert head < stem
    assert image.getpixel((first, head)) == image.getpixel((third, head)) == (31, 119, 180)
    assert image.getpixel((first, stem)) == WHITE
    assert image.getpixel((third, stem)) == (115, 170, 208)  # 62.5% of that colour
    assert image.getpixel((left + (right - left) // 4, stem)) == GREY  # where the second phase begins


def test_plan_without_an_end_or_a_phase_that_has_begun_is_drawn():
    plan = make_plan("gradual", ["stem", "head"], None)
    assert draw_plan(plan, [0], None, {}).width == 800
