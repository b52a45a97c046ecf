"""Code of the user's own: what it raises, as a user error that has its traceback, and which methods it overrides."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lit_ft.errors import UserError, find_user_packages, is_from_user_code, iterate_causes, plain, printable, text_of

_SHOWN_LINES = 30
"""Lines of a traceback at each end; functions that call one another without end leave thousands."""
_SHOWN_WIDTH = 500
_REASON_WIDTH = 300
_WAY = ("<frozen importlib", *(f"{Path(file).parent}{os.sep}" for file in (__file__, importlib.__file__)))
"""How the files begin whose code leads to a call of the user's."""


class UserCodeError(UserError):
    """What code of the user's own raised, which is its cause; the command line prints the traceback above the line.

    Args:
        message: The line.
        trace: The traceback, which the process of a worker, or a copy of the error, has no other way to hand on.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)

    def __str__(self) -> str:
        return plain(self.args[0])

    @property
    def trace(self) -> str:
        """The traceback, from the call into the user's code on."""
        return str(self.args[1])

    def _render_traceback_(self) -> list[str]:
        """The user's frames and the line, where IPython asks what to show of it."""
        return [*printable(self.trace, lines=True).split("\n"), *super()._render_traceback_()]


@contextmanager
def running_own_code(key: str, path: str, doing: str) -> Iterator[None]:
    """Raises what the user's own code raises within as a `UserCodeError`; see `refuse_own_fault`."""
    try:
        yield
    except BaseException as error:
        refuse_own_fault(error, key, path, doing)
        raise


def refuse_own_fault(error: BaseException, key: str, path: str, doing: str) -> None:
    """Raises a `UserCodeError` for what the user's own code has raised.

    Also for what would end the process, such as `SystemExit`, and with 0 as if all were done. Not for what libraries
    raise over what they are given, for user errors and interrupts.

    Args:
        error: What was raised.
        key: The option that names the code, in backquotes.
        path: The dotted path of the code.
        doing: What it was asked for, such as ``at item 3 of train``.
    """
    if isinstance(error, (UserError, KeyboardInterrupt)):
        return
    if is_from_user_code(error, find_user_packages({"class_path": path})):
        reason = format_reason(error)
        line = f"{key}: {path} raised {type(error).__name__} {doing}"
        raise UserCodeError(f"{line}: {reason}" if reason else line, format_own_traceback(error)) from error


def find_trace(error: BaseException) -> str:
    """The traceback of the user's own code that a user error came of; nothing where it came of none."""
    return next((cause.trace for cause in iterate_causes(error) if isinstance(cause, UserCodeError)), "")


def format_reason(error: BaseException) -> str:
    r"""What an exception says, in a line; nothing where it says nothing.

    >>> format_reason(ValueError("two\nlines"))
    'two lines'
    """
    text = " ".join(text_of(error).split())
    return text if len(text) <= _REASON_WIDTH else f"{text[:_REASON_WIDTH]} …"


def format_own_traceback(error: BaseException) -> str:
    """The traceback of an exception without the frames that lead to the user's code; of a long one, both ends."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_WAY):
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(type(error), error, trace)).rstrip("\n").split("\n")
    left = len(lines) - 2 * _SHOWN_LINES
    if left > 0:
        lines[_SHOWN_LINES:-_SHOWN_LINES] = [f"  … {left:,} lines …"]
    return "\n".join(line if len(line) <= _SHOWN_WIDTH else f"{line[:_SHOWN_WIDTH]} …" for line in lines)


def is_overridden(owner: object, name: str, base: type) -> bool:
    """Whether a method is not that of a base class, also where it wraps that; ``False`` without an owner."""
    method = getattr(owner, name, None)
    return method is not None and getattr(method, "__func__", method) is not getattr(base, name)
