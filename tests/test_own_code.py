import pickle
import traceback

import pytest

from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError, find_trace, format_own_traceback, format_reason, running_own_code
from lit_ft.training.signals import Interrupted

KEY = "`data.dataset`"


class Base(BaseException):
    """One that no ``except Exception`` gets."""


class WordlessError(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


def fails(error):
    raise error


def run(error):
    with running_own_code(KEY, "mine.Set", "at item 3 of train"):
        fails(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such label"), "raised ValueError at item 3 of train: no such label"),
        (ValueError("one\n two\r\n"), "raised ValueError at item 3 of train: one two"),
        (AssertionError(), "raised AssertionError at item 3 of train"),
        (WordlessError(), "raised WordlessError at item 3 of train"),
        (SystemExit(0), "raised SystemExit at item 3 of train: 0"),
        (Base("mine"), "raised Base at item 3 of train: mine"),
        (StopIteration(), "raised StopIteration at item 3 of train"),
        (OSError(28, "No space left on device"), "raised OSError at item 3 of train: [Errno 28] No space left on dev"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_own_code_raises_is_a_user_error_of_that_cause(error, line):
    with pytest.raises(UserCodeError) as caught:
        run(error)
    assert str(caught.value).startswith(f"data.dataset: mine.Set {line}")
    assert caught.value.__cause__ is error
    assert "fails(error)" in caught.value.trace


@pytest.mark.parametrize("error", [UserError("`data.root`: mine"), KeyboardInterrupt(), Interrupted(15)])
def test_user_errors_and_interrupts_of_own_code_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught:
        run(error)
    assert caught.value is error


def raised(make):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        make()
    return caught.value


def test_traceback_begins_with_the_users_own_frames():
    trace = raised(lambda: run(ValueError("mine"))).trace.split("\n")
    assert trace[0] == "Traceback (most recent call last):"
    assert [line for line in trace if "lit_ft/own_code.py" in line] == []
    assert trace[-1] == "ValueError: mine"


def test_long_traceback_is_cut_in_the_middle():
    def one():
        return other()

    def other():
        return one()

    lines = format_own_traceback(raised(one)).split("\n")
    assert len(lines) == 61
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[30].startswith("  … ")
    assert lines[-1].startswith("RecursionError: maximum recursion depth exceeded")
    wide = format_own_traceback(ValueError("x" * 9999))
    assert len(wide) == 502
    assert format_reason(ValueError("x" * 9999)) == "x" * 300 + " …"


def test_traceback_survives_a_process_and_a_copy_and_is_found_behind_other_errors():
    error = raised(lambda: run(ValueError("mine")))
    for made in (pickle.loads(pickle.dumps(error)), type(error)(*error.args)):
        assert (str(made), made.trace) == (str(error), error.trace)
    wrapped = raised(lambda: fails_from(UserError("`tune.space`: too"), error))
    assert find_trace(wrapped) == error.trace != ""
    assert find_trace(UserError("`tune.space`: too")) == ""


def fails_from(error, cause):
    raise error from cause


def test_notebook_shows_the_users_frames_and_the_line():
    shown = raised(lambda: run(ValueError("\x1b[2Jmine")))._render_traceback_()
    assert any("in fails" in line for line in shown)
    assert shown[-1] == r"UserCodeError: data.dataset: mine.Set raised ValueError at item 3 of train: \x1b[2Jmine"
    assert "\x1b" not in "".join(shown)


def test_code_in_a_cell_of_a_notebook_is_the_users_own(capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell("from lit_ft.data.datasets.items import Reader")
    shell.run_cell("class Set:\n    def __getitem__(self, index):\n        raise ValueError('no such label')")
    shell.run_cell("Reader(Set(), '__main__.Set', 'train').read(3)")
    shown = capsys.readouterr().out
    assert "in __getitem__\n    raise ValueError('no such label')\nValueError: no such label\n" in shown
    assert shown.endswith(
        "UserCodeError: data.dataset: __main__.Set raised ValueError at item 3 of train: no such label\n"
    )


def test_python_shows_the_exception_that_it_came_of():
    shown = "".join(traceback.format_exception(raised(lambda: run(ValueError("mine")))))
    assert "in fails\n" in shown
    assert "ValueError: mine\n\nThe above exception was the direct cause" in shown
