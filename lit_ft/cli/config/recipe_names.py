"""Configs on a command line that are given by the names of recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lit_ft.recipes import find_config


def find_configs(args: Sequence[str]) -> list[str]:
    """The arguments, with the path of each config that is given by its name, in any form that jsonargparse takes.

    Raises:
        UserError: If there is neither a file nor a recipe of that name.

    >>> find_configs(["--config=mine.yaml", "-c", "other.yaml", "--name", "quickstart"])
    ['--config=mine.yaml', '-c', 'other.yaml', '--name', 'quickstart']
    """
    found, is_config = list[str](), False
    for arg in args:
        option, value = ("", arg) if is_config else _split(arg)
        is_config = not is_config and arg in ("--config", "-c")
        found.append(f"{option}{find_config(value, '`--config`')}" if value is not None else arg)
    return found


def _split(arg: str) -> tuple[str, str | None]:
    """The option and the value of an argument that has both, if it is a config."""
    parts = re.fullmatch("(--config=|-c=?)(.+)", arg, re.DOTALL)
    return (parts[1], parts[2]) if parts else ("", None)
