import pytest

from lit_ft.console import format_table


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [("phase", "epochs"), ("1", "0-4"), ("10", "5-…")]
    assert format_table(rows).splitlines() == ["phase  epochs", "1      0-4", "10     5-…"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ((), "head  7 x"),
        (("<6",), "head    7 x"),
        ((">6", ">4"), "  head   7 x"),
        (("<2", ">1"), "head  7 x"),  # a cell wider than the least width is not cut
    ],
)
def test_column_has_its_alignment_and_least_width(columns, line):
    assert format_table([("head", "7 x")], columns) == line


def test_row_that_ends_early_leaves_the_others_aligned():
    assert format_table([("a", "b", "c"), ("long",)]).splitlines() == ["a     b  c", "long"]


def test_text_between_columns():
    assert format_table([("train", "5", "images")], ("<6", ">3"), gap=" ") == "train    5 images"


def test_no_line_ends_in_blanks():
    assert format_table([("a", ""), ("", "b")]).splitlines() == ["a", "   b"]


def test_table_without_rows_is_empty():
    assert format_table([]) == ""
