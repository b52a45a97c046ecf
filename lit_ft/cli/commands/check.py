"""``lit-ft check``: what would hurt a training in the data."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser

from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.data.checks.check_data import check
from lit_ft.data.checks.report import print_check


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds what the command alone takes."""
    about = "The folder that check.html, a page of pictures, and check.json go to; null writes neither."
    parser.add_argument("--folder", type=str | None, default=None, help=about)


def run(cli: ConfigCLI) -> int:
    """Checks the data of a config; the exit code is 1 if something hurts."""
    return print_check(check(cli.make_data()), cli.config["folder"])
