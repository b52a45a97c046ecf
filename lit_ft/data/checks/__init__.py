"""Checks of a data set before any training."""

from lit_ft.data.checks.check_data import check
from lit_ft.data.checks.findings import Checked, Finding
from lit_ft.data.checks.report import print_check

__all__ = ["Checked", "Finding", "check", "print_check"]
