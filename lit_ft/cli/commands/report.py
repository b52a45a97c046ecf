"""``lit-ft report``: the page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.data.pages import write_report
from lit_ft.evaluation.report import render_report
from lit_ft.runs import Run


def run(args: Sequence[str]) -> int:
    """Writes ``report.html`` into the folders of runs."""
    parser = CommandParser(prog="lit-ft report", description=COMMANDS["report"])
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="the folder of a run, such as logs/image_folder/version_0"
    )
    for folder in parser.parse_args(args).run:
        found = Run(Path(folder))
        write_report(found.folder, {found.report.name: render_report(found)})
    return 0
