import os
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from lit_ft.evaluation import lettering
from lit_ft.evaluation.lettering import Lettering, prepare_names

# Private characters, which no font of any machine has, so that it does not matter which are installed.
CAT, DOG = "\U0010fff0", "\U0010fff1"


@pytest.fixture
def font(tmp_path, monkeypatch):
    """A font that has the first of the two characters: a triangle as wide as it is high."""
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
    lettering._find_fonts.cache_clear()
    yield tmp_path / "cats.ttf"
    lettering._find_fonts.cache_clear()


def ink(text, pixels=20, side="left", x=0.0):
    """The columns of a picture of 200 pixels that a line has ink in."""
    image = Image.new("RGB", (200, 40), (255, 255, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Lettering([text], pixels).write(image, (x, 0), text, side)
    return [column for column in range(200) if any(image.getpixel((column, row))[0] < 128 for row in range(40))]


@pytest.mark.parametrize("name", ["$", "$x$", "a_$^", r"\frac{", "{}", "Жук", "müll", "→ …"])
def test_names_are_written_as_they_are(name):
    assert prepare_names([name, "bee"]) == ([name, "bee"], "")
    columns = ink(name)
    assert 0 <= columns[0] <= 3
    assert abs(columns[-1] - Lettering([name], 20).width(name)) <= 4


def test_line_lies_to_the_left_or_around_its_place():
    width = Lettering(["bee"], 20).width("bee")
    first = ink("bee")[0]
    assert ink("bee", side="right", x=100)[0] == first + 100 - width
    assert ink("bee", side="middle", x=100)[0] == first + round(100 - width / 2)


def test_a_font_that_has_the_characters_is_found(font):
    assert prepare_names(["ant", CAT, DOG])[0] == ["ant", CAT, "#2"]
    pen = Lettering(["ant", CAT], 20)
    assert pen.width(f"ant{CAT}") == pytest.approx(pen.width("ant") + 20, abs=1)
    columns = ink(f"ant{CAT}")
    assert columns[-1] > pen.width("ant") + 10
    assert ink("ant") == columns[: len(ink("ant"))]  # by the default font, which has these


def test_fonts_that_cannot_be_read_are_passed_over(font):
    font.write_bytes(b"")
    assert prepare_names(["ant", CAT])[0] == ["ant", "#1"]


@pytest.mark.parametrize("odd", [DOG, "a\nb", "\x07", os.fsdecode(b"caf\xe9")])
def test_name_that_no_font_has_is_its_number(odd):
    assert prepare_names(["ant", odd]) == (["ant", "#1"], "(# and a number: no font here has the name)")
    assert prepare_names([odd], number="?")[0] == ["?0"]


def test_no_font_is_looked_for_where_the_default_has_all(monkeypatch):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", None)
    lettering._find_fonts.cache_clear()
    assert prepare_names(["bee", "müll", "Жук"])[0] == ["bee", "müll", "Жук"]


def test_line_written_upwards_begins_below():
    image = Image.new("RGB", (40, 100), (255, 255, 255))
    pen = Lettering(["..l"], 20)
    pen.write_upwards(image, (5, 90), "..l")
    rows = [sum(image.getpixel((x, y))[0] < 128 for x in range(40)) for y in range(100)]
    inked = [y for y in range(100) if rows[y]]
    assert 80 <= inked[-1] < 90
    assert max(rows) == rows[inked[0]] or rows[inked[0] + 1] == max(rows)  # the tall letter, which is last
