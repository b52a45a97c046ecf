"""``lit-ft convert``: photos written as chunks for streaming."""

from __future__ import annotations

import shlex

from lightning.pytorch.cli import LightningArgumentParser

from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.streaming.convert import convert
from lit_ft.errors import UserError, printable


def add_arguments(parser: LightningArgumentParser) -> None:
    """Adds what the command alone takes."""
    parser.add_argument("--folder", type=str, required=True, help="The folder to make.")


def run(cli: ConfigCLI) -> int:
    """Converts the photos of a config.

    Raises:
        UserError: If they are no photos in files, or cannot be converted.
    """
    data = cli.make_data()
    if not isinstance(data, PhotoDataModule):
        raise UserError(f"`data`: lit-ft convert takes photos in files, not {type(data).__name__}")
    made = convert(data, cli.config["folder"])
    print(f"Train on it: --data StreamDataModule --data.root {printable(shlex.quote(str(made)))}")
    return 0
