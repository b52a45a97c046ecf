"""Decides which commands ``lit-ft`` has, and lists them before anything is loaded that takes seconds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lit_ft.errors import UserError, unknown

# How each is told in a line, in the order of the list.
COMMANDS = {
    "finetune": "Fits, then tests with the best checkpoint, then tells where everything is.",
    "plan": "Shows what a fit would do, phase by phase, and refuses what it would refuse, without training.",
    "check": "Looks for what would hurt a training in the data: damaged files, copies across splits, placeholders.",
    "download": "Fetches the weights and data that a config needs into one folder, for machines without a network.",
    "convert": "Writes the photos of a config for StreamDataModule, which streams them from a folder or a bucket.",
    "fit": "Trains and validates, without the test at the end.",
    "validate": "Measures a checkpoint on the validation images.",
    "test": "Measures a checkpoint on the test images.",
    "predict": "Writes what a checkpoint says of each image to a table.",
    "models": "Lists the backbones: size without classifier, compute, input, stages, weights at hand.",
    "describe": "Shows the stages of a backbone, the images that it expects, and its published weights.",
}

_HELP = ("-h", "--help")


def listed(args: Sequence[str]) -> bool:
    """Prints the list of commands if the arguments ask for it and for no command, and returns whether they do.

    Raises:
        UserError: If they name no command, or one that does not exist.
    """
    if not args:
        raise UserError(f"which command? One of {', '.join(COMMANDS)}; lit-ft --help tells what each does")
    if not args[0].startswith("-") and args[0] not in COMMANDS:
        raise unknown("command", args[0], COMMANDS)
    if not set(_HELP) & set(args) or set(COMMANDS) & set(args):
        return False
    parser = argparse.ArgumentParser(
        "lit-ft",
        description="Fine-tune pretrained image models, stage by stage.",
        epilog="lit-ft COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--offline", action="store_true", help="fetch nothing from a network; list what is missing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a mistake")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about)
    parser.print_help()
    return True
