"""Output of commands and callbacks on the terminal."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_only

from lit_ft.errors import printable


@rank_zero_only
def say(text: str) -> None:
    """Prints a line on the first process."""
    print(printable(text, lines=True), flush=True)
