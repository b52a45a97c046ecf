"""The command line, and the same from Python."""

from lit_ft.cli.entry import main

__all__ = ["main"]
