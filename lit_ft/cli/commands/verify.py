"""``lit-ft verify``: whether an exported file gives on this machine what the model gave."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.errors import printable
from lit_ft.export.runtime import ExportedFile, open_exported
from lit_ft.export.verification import format_agreement, run_examples


def run(args: Sequence[str]) -> int:
    """Runs the examples in exported files; the exit code is 1 if the outputs of any differ."""
    parser = CommandParser(prog="lit-ft verify", description=COMMANDS["verify"])
    parser.add_argument("file", nargs="+", metavar="FILE", help="a .onnx or .pt2 file that lit-ft export wrote")
    return max(_verify(path, open_exported(path)) for path in parser.parse_args(args).file)


def _verify(path: str, file: ExportedFile) -> int:
    """Prints how far the outputs of a file differ, and returns its exit code."""
    description, agreement = file.description, run_examples(file)
    verdict = "agrees" if agreement.holds else "DIFFERS"
    found = format_agreement(agreement, description)
    print(f"{printable(path)}: {verdict} on {len(description.examples)} images, {found}")
    for name, value in (("Runtime", file.runtime), ("Written by", _format_versions(file))):
        print(f"  {name:<11} {printable(value)}")
    if agreement.holds:
        return 0
    for row, difference in enumerate(agreement.differences):
        mark = ", another class" if row in agreement.changed else ""
        print(f"  image {row:<5} {difference:.2g}{mark}")
    hint = "export it again, or run it with the versions that wrote it"
    print(f"lit-ft: {printable(path)}: its outputs differ from the model's; {hint}", file=sys.stderr)
    return 1


def _format_versions(file: ExportedFile) -> str:
    return ", ".join(f"{name} {version}" for name, version in file.description.versions.items())
