"""``lit-ft compare``: what differs between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_ft.assets import replace_atomically
from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.console import rank_zero_print
from lit_ft.errors import UserError
from lit_ft.evaluation.comparison import compare_runs
from lit_ft.evaluation.comparison_report import format_comparison, render_comparison
from lit_ft.evaluation.prediction_files import check_target
from lit_ft.runs import Run


def run(args: Sequence[str]) -> int:
    """Prints what differs between runs, and writes a page of it."""
    parser = CommandParser(prog="lit-ft compare", description=COMMANDS["compare"])
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="the folders of two or more runs; each is compared with the first"
    )
    parser.add_argument("--out", default="compare.html", metavar="FILE", help="the page to write, an .html file")
    parser.add_argument("--overwrite", action="store_true", help="replace that file, if it is there")
    given = parser.parse_args(args)
    out = Path(given.out).expanduser()
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out: {out} must end in .html")
    if refusal := check_target(out, given.overwrite):
        raise UserError(f"--out: {refusal.replace('`predictions.overwrite` true', '--overwrite')}")
    runs = [Run(Path(folder)) for folder in given.run]
    folders = [one.folder.resolve() for one in runs]
    if len(set(folders)) < max(2, len(folders)):
        same = next((one for one in folders if folders.count(one) > 1), None)
        raise UserError(f"RUN: {same} is given twice" if same else "RUN: give two or more, to compare the first with")
    found = compare_runs(runs)
    page = render_comparison(found)
    with replace_atomically(out) as unfinished:
        unfinished.write_text(page, encoding="utf-8", errors="surrogateescape")
    rank_zero_print(f"{format_comparison(found)}\n\nWritten: {out}")
    return 0
