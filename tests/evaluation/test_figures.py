import io
import os
import warnings

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from lit_ft.evaluation import figures
from lit_ft.evaluation.figures import draw_confusion, draw_plan, prepare_names
from lit_ft.unfreezing.strategies import make_plan

# Private characters, which no font of any machine has, so that it does not matter which are installed.
CAT, DOG = "\U0010fff0", "\U0010fff1"


def draw(figure):
    """Draws a figure, as TensorBoard does; any warning, as of a character without a glyph, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")


def ticks(figure):
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


@pytest.fixture
def font(tmp_path, monkeypatch):
    """A font that has the first of the two characters."""
    pen = TTGlyphPen(None)
    for point, draw_to in ((0, 0), pen.moveTo), ((0, 900), pen.lineTo), ((900, 0), pen.lineTo):
        draw_to(point)
    pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": glyph, "cat": glyph})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=0)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(tmp_path / "cats.ttf")
    figures._find_fonts.cache_clear()
    yield "Cats"
    figures._find_fonts.cache_clear()


MATH = ["$", "$x$", "a_$^", r"\frac{", "$\\alpha", "US$ 5", "{}"]


@pytest.mark.parametrize("name", MATH)
def test_names_are_no_mathematics(name):
    names = [name, "bee"]
    confusion = draw_confusion(torch.eye(2), names)
    plan = draw_plan(make_plan("full", [name, "head"], 1), [0], 1, {name: 0.1})
    for figure in (confusion, plan):
        draw(figure)
    assert ticks(confusion) == names
    assert ticks(plan) == [f"{name}, lr 0.1", "head"]


@pytest.mark.parametrize("odd", [DOG, "a\nb", "\x07", os.fsdecode(b"caf\xe9")])
def test_name_that_no_font_can_show_is_drawn_by_its_number(odd):
    confusion = draw_confusion(torch.eye(3), ["ant", odd, "é"])
    plan = draw_plan(make_plan("full", [odd, "head"], 1), [0], 1, {odd: 0.1})
    assert ticks(confusion) == ["ant", "#1", "é"]
    assert ticks(plan) == ["#0, lr 0.1", "head"]
    told = "(# and a number: no font here has the name)"
    assert confusion.axes[0].get_xlabel() == f"predicted\n{told}"
    assert plan.axes[0].get_xlabel() == f"epoch\n{told}"
    for figure in (confusion, plan):
        draw(figure)


def test_a_font_that_has_the_characters_is_found(font):
    names = ["ant", CAT, f"a {CAT}"]
    figure = draw_confusion(torch.eye(3), names)
    draw(figure)
    assert ticks(figure) == names
    assert figure.axes[0].get_xlabel() == "predicted"
    families = [tick.get_fontfamily() for tick in figure.axes[0].get_xticklabels()]
    assert all(family[0] != font and family[-1] == font for family in families)  # only where the default has none
    assert prepare_names(["ant", CAT, DOG])[0] == ["ant", CAT, "#2"]


def test_fonts_that_cannot_be_read_are_passed_over(tmp_path, font):
    for entry in font_manager.fontManager.ttflist:
        if entry.name == font:
            open(entry.fname, "wb").close()
    assert prepare_names(["ant", CAT])[0] == ["ant", "#1"]


def test_no_font_is_looked_for_where_the_default_has_all(monkeypatch):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", None)
    figures._find_fonts.cache_clear()
    assert prepare_names(["bee", "müll", "Жук"])[0] == ["bee", "müll", "Жук"]


MATRIX = torch.tensor([[3, 1, 0], [0, 5, 0], [0, 0, 0]])


def test_confusion_figure_has_counts_shares_and_names():
    [axes] = draw_confusion(MATRIX, ["ant", "bee", "cat"]).axes
    cells = {(0, 0): "75%\n3", (1, 0): "25%\n1", (1, 1): "100%\n5"}
    assert {text.get_position(): text.get_text() for text in axes.texts} == cells
    colors = {text.get_position(): text.get_color() for text in axes.texts}
    assert colors == {(0, 0): "white", (1, 0): "black", (1, 1): "white"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["ant", "bee", "cat"]
    [image] = axes.images
    assert image.get_array().tolist() == [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert image.get_clim() == (0.0, 1.0)


def test_confusion_figure_of_many_classes_has_no_numbers():
    [axes] = draw_confusion(torch.eye(31), [str(i) for i in range(31)]).axes
    assert len(axes.texts) == 0
    assert len(axes.get_xticklabels()) == 31
