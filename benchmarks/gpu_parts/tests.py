"""The tests marked ``gpu``, each counted as soon as it has ended."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from gpu_parts.measuring import Measuring

ROOT = Path(__file__).parents[2]
_OUTCOMES = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
_AFTER = re.compile(rf"^(?P<file>\S+\.py)::(?P<test>.+?) (?P<outcome>{_OUTCOMES})\b")
_BEFORE = re.compile(rf"^\[gw\d+\] \[ *\d+%\] (?P<outcome>{_OUTCOMES}) (?P<file>\S+\.py)::(?P<test>.+?) *$")
_REASON = re.compile(r"^(?:FAILED|ERROR) \S+\.py::(?P<test>.+?) - (?P<reason>.+)$")


def read_outcome(line: str) -> tuple[str, str, str] | None:
    """File, test and outcome in a line of pytest's, with or without processes; None in any other line.

    >>> read_outcome("tests/gpu/test_gpu_fit.py::test_a[in a phase] PASSED [  3%]")
    ('test_gpu_fit', 'test_a[in a phase]', 'PASSED')
    >>> read_outcome("[gw1] [ 10%] FAILED tests/gpu/test_gpu_data.py::test_b ")
    ('test_gpu_data', 'test_b', 'FAILED')
    """
    found = _AFTER.match(line) or _BEFORE.match(line)
    return None if found is None else (Path(found["file"]).stem, found["test"], found["outcome"])


class Outcomes:
    """What came of the tests so far, by file."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.failed: dict[str, dict[str, str]] = {}

    def take(self, line: str) -> bool:
        """Takes a line of pytest's; says whether it told something."""
        if reason := _REASON.match(line):
            for failed in self.failed.values():
                if reason["test"] in failed:
                    failed[reason["test"]] = f" ({reason['reason'][:100].strip()})"
            return True
        found = read_outcome(line)
        if found is None:
            return False
        file, test, outcome = found
        counts = self.counts.setdefault(file, {})
        counts[outcome.lower()] = counts.get(outcome.lower(), 0) + 1
        if outcome in ("FAILED", "ERROR"):
            self.failed.setdefault(file, {})[test] = ""
        return True

    def write(self, measuring: Measuring) -> None:
        """Writes a row for each file."""
        for file, counts in sorted(self.counts.items()):
            result = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
            failed = "; ".join(f"{test}{reason}" for test, reason in self.failed.get(file, {}).items())
            measuring.write(file, result, failed and f"failed: {failed}")


def tests(measuring: Measuring) -> None:
    """Runs the tests, in processes of their own where pytest-xdist is there."""
    if find_spec("pytest") is None:
        measuring.write("tests marked gpu", "skipped, as pytest is not installed")
        return
    outcomes, device = Outcomes(), measuring.sizes.device
    processes = ["-n", "4" if device == "cuda" else "2", "--dist", "loadfile"] if find_spec("xdist") else []
    # Without the options of pyproject.toml, which name xdist, and with warnings of other releases than those it knows.
    options = ["-o", "addopts=", "-o", "faulthandler_timeout=60", "-p", "no:cacheprovider", "-W", "default"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "-m",
        "gpu",
        "-v",
        "--tb=short",
        "--color=no",
        "-rfE",
        *processes,
    ]
    process = subprocess.Popen(
        [*command, "tests/gpu"], cwd=ROOT, env={**os.environ, "LIT_FT_GPU": device}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    ending = threading.Timer(max(1.0, measuring.left), process.terminate)
    ending.start()
    try:
        follow(process.stdout or (), outcomes, measuring)
        code = process.wait()
    finally:
        ending.cancel()
    if not outcomes.counts or code not in (0, 1):
        measuring.write("tests marked gpu", f"pytest ended with {code}, before its last test")


def follow(lines: Iterable[str], outcomes: Outcomes, measuring: Measuring) -> None:
    """Shows each line, and writes the rows anew after each that tells of a test."""
    for line in lines:
        print(line, end="", flush=True)
        if outcomes.take(line.rstrip("\n")):
            outcomes.write(measuring)
