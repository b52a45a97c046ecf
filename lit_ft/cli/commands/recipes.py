"""``lit-ft recipes``: the recipes that come with lit_ft, and a copy of one."""

from __future__ import annotations

from collections.abc import Sequence

from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.console import format_table
from lit_ft.errors import UserError
from lit_ft.recipes import cluster_files, read_recipe, recipes

_COLUMNS = ("recipe", "data", "time", "score")
_HINTS = """
Scores and times are as measured, on one thread of a CPU.
Run one:   lit-ft finetune --config NAME
Copy one:  lit-ft recipes NAME > mine.yaml"""


def run(args: Sequence[str]) -> int:
    """Lists all recipes, or prints one as it is."""
    parser = CommandParser(prog="lit-ft recipes", description=COMMANDS["recipes"])
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this one, such as for a copy of your own")
    name = parser.parse_args(args).name
    if name is not None:
        print(_read(name), end="")
        return 0
    print(format_table([_COLUMNS, *recipes()]))
    print(f"\nFor several GPUs or machines\n{format_table(cluster_files().items())}")
    print(_HINTS)
    return 0


def _read(name: str) -> str:
    try:
        return read_recipe(name)
    except UserError as error:
        raise UserError(f"{error}; lit-ft recipes lists them all") from error
