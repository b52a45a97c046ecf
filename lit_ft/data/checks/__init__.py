"""Decides what is checked of a data set before any training: see `check`."""

from lit_ft.data.checks.findings import Checked, Finding, check
from lit_ft.data.checks.report import print_check

__all__ = ["Checked", "Finding", "check", "print_check"]
