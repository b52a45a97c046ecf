"""Cells of text in tables that spreadsheets open: what they would take for a formula, and back."""

from __future__ import annotations

import re

# Also after apostrophes, so that an escaped cell differs from one that began with an apostrophe. Those of full width
# count as the others in some languages' editions.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def escape_formula(cell: str) -> str:
    """A cell with an apostrophe before it, where a spreadsheet would run it as a formula; numbers stay.

    >>> escape_formula("=1+2"), escape_formula("'=1+2"), escape_formula("-1"), escape_formula("ant")
    ("'=1+2", "''=1+2", '-1', 'ant')
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell


def unescape_formula(cell: str) -> str:
    """The cell that `escape_formula` made another of.

    >>> unescape_formula("'=1+2"), unescape_formula("''=1+2"), unescape_formula("'ant")
    ('=1+2', "'=1+2", "'ant")
    """
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell
