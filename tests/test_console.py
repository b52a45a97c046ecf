import io
import time

import pytest
import tqdm.notebook

from lit_ft.console import format_table, is_notebook, log_progress, progress_bar


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


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("later", "shown"), [(0.5, False), (1.5, True)])
def test_only_what_lasts_has_a_bar(monkeypatch, later, shown):
    terminal, now = Terminal(), [0.0]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def work():
        for _ in range(3):
            now[0] += later / 3
            yield 1

    log_progress("Cross-validation", work(), 3, unit="penalties")
    assert ("Cross-validation" in terminal.getvalue()) == shown


def test_log_file_has_a_line_a_minute(monkeypatch, capsys):
    now = iter([0.0, 30.0, 61.0, 61.0, 90.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    log_progress("Cross-validation", iter([1, 1, 1]), 9, unit="penalties")
    assert capsys.readouterr().out == "Cross-validation  2 of 9 penalties\n"


class Notebook(io.StringIO):
    """What a kernel puts in the place of the output."""


Notebook.__module__ = "ipykernel.iostream"


def test_bars_are_widgets_in_a_notebook_that_can_draw_them(monkeypatch):
    assert not is_notebook()
    monkeypatch.setattr("sys.stdout", Notebook())
    assert is_notebook()
    with progress_bar("reading", 2) as bar:
        assert isinstance(bar, tqdm.notebook.tqdm)
        assert not bar.disable
    assert progress_bar("reading", 2, shown=False).disable
    monkeypatch.setattr("lit_ft.console.find_spec", lambda name: None)
    assert not is_notebook()
    with progress_bar("reading", 2) as bar:
        assert type(bar) is tqdm.tqdm
        assert bar.disable
