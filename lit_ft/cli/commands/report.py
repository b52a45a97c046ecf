"""``lit-ft report``: the page of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.data.pages import write_report
from lit_ft.errors import UserError
from lit_ft.evaluation.report import render_report
from lit_ft.runs import Run

_PHOTO = "src='data:image"


def run(args: Sequence[str]) -> int:
    """Writes ``report.html`` into the folders of runs."""
    parser = CommandParser(prog="lit-ft report", description=COMMANDS["report"])
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="the folder of a run, such as logs/image_folder/version_0"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a page that has photos which are gone now")
    given = parser.parse_args(args)
    for folder in given.run:
        found = Run(Path(folder))
        page = render_report(found)
        before = found.report.read_text("utf-8", "surrogateescape") if found.report.is_file() else ""
        num, kept = (text.count(_PHOTO) for text in (page, before))
        if num < kept and not given.overwrite:
            raise UserError(
                f"{found.report}: has {kept} photos, of which this page would have {num}, as the others are not where "
                "they were, or only in memory; --overwrite replaces it"
            )
        write_report(found.folder, {found.report.name: page})
    return 0
