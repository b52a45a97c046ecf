"""What is wrong with a command line, before a command is looked at."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from shlex import join, quote

from lit_ft.cli.commands import COMMANDS
from lit_ft.cli.config.advice import PHOTO_COMMANDS
from lit_ft.errors import UserError
from lit_ft.recipes import recipe_names

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_QUOTES = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\xab\xbb"

_OTHER_COMMANDS = {
    "train training run start finetuning transfer transfer_learning learn classify": "finetune PHOTOS",
    "eval evaluate evaluation val": "validate RUN, or on test images lit-ft test RUN",
    "infer inference prediction detect classify_images label": "predict RUN PHOTOS",
    "info show summary stages": "describe BACKBONE",
    "list ls zoo backbones networks list_models": "models",
    "onnx quantize freeze save": "export RUN FILE",
    "dry_run": "plan PHOTOS",
    "verify_data validate_data inspect clean": "check PHOTOS",
    "deploy app web": "serve RUN",
    "fetch get pull": "download --config CONFIG --folder FOLDER",
    "config init new": "fit --config CONFIG --print_config",
    "resume continue": "finetune --config CONFIG --resume auto",
    "html page": "report RUN",
    "diff": "compare RUN OTHER_RUN",
    "search sweep hpo optuna hyperparameters optimize": "tune PHOTOS --tune SPACE.yaml",
    "lr_find lp linear_probe knn embed features": "probe PHOTOS",
    "help h": "--help",
}
"""By the names of commands elsewhere, what to type after ``lit-ft``."""


def refuse_arguments(args: Sequence[str]) -> None:
    """Raises `UserError` for what a text processor, another shell or an empty variable makes of a command line."""
    for before, arg in pairwise(["", *args]):
        _refuse_undecoded(arg)
        if arg[:1] in _DASHES and arg:
            raise UserError(f"{arg}: begins with a dash of text; type hyphens, --{arg.lstrip(_DASHES + '-')}")
        if arg[:1] in _QUOTES and arg:
            raise UserError(f"{arg}: has quotation marks of text; type ' or \"")
        if arg in ("\\", "^", "`"):
            raise UserError(f"{arg}: ends a line in another shell; type the command in one line")
        if not arg.strip():
            what = f"{before}: its value" if before.startswith("-") else "an argument"
            raise UserError(f"{what} is empty, as a variable that is not set; name what is meant, or leave it out")
        if arg in ("=", ":", "-", "--"):
            raise UserError(f"{arg}: stands alone; type an option and its value as --epochs 5 or --epochs=5")


def print_version() -> None:
    """Prints the version of the package, where it is installed as one."""
    from importlib import metadata  # slow to load, and `lit-ft --help` does without it

    try:
        print(f"lit-ft {metadata.version('lit_ft')}")
    except metadata.PackageNotFoundError as error:
        raise UserError("the version is unknown, as lit_ft is not installed; run: pip install -e .") from error


def unknown_command(given: str, options: Sequence[str]) -> UserError:
    """The error for what stands where a command should, with what to type instead."""
    word = re.sub("[-_ ]", "", given.lower())
    own = next((name for name in COMMANDS if name == word), None)
    if word in ("litft", "python"):
        return UserError(f"{given}: is typed twice; type lit-ft {join(options)}")
    if own is not None:
        return UserError(f"unknown command {given!r}; type lit-ft {own}")
    if typed := _find_typed(given, options):
        return UserError(f"{given}: the command comes first; type lit-ft {typed}")
    if word == "help" and options and options[0] in COMMANDS:
        return UserError(f"unknown command {given!r}; type lit-ft {options[0]} --help")
    others = {name: typed for names, typed in _OTHER_COMMANDS.items() for name in names.split()}
    if typed := others.get(given.lower().replace("-", "_")):
        return UserError(f"unknown command {given!r}; type lit-ft {typed}")
    if given.startswith("-"):
        return UserError(f"{given}: the command comes first, one of {', '.join(COMMANDS)}")
    close = get_close_matches(given, COMMANDS)
    hint = f"nearest: {', '.join(close)}" if close else f"choose from {', '.join(COMMANDS)}"
    return UserError(f"unknown command {given!r}; {hint}")


def _find_typed(given: str, options: Sequence[str]) -> str | None:
    """The command line that is meant where options, a file or a folder come before the command."""
    command = next((one for one in options if one in COMMANDS), None)
    if given.startswith("-"):
        rest = [one for one in options if one != command]
        if command is None and "=" not in given and not options:
            return None
        return join([command or "finetune", given, *rest])
    suffix = Path(given).suffix.lower()
    if suffix in (".yaml", ".yml"):
        return f"{command or 'finetune'} --config {quote(given)}"
    if suffix in (".ckpt", ".onnx", ".pt2"):
        return f"{command or 'predict'} {quote(given)} PHOTOS"
    if given in recipe_names():
        return f"{command or 'finetune'} --config {given}"
    if os.path.isdir(given):
        return f"{command if command in PHOTO_COMMANDS else 'finetune'} {quote(given)}"
    return None


def _refuse_undecoded(arg: str) -> None:
    """Raises `UserError` for an argument that is no text, such as a path whose name is of another encoding."""
    try:
        arg.encode()
    except UnicodeEncodeError as error:
        encoding = sys.getfilesystemencoding()
        advice = "rename what it names" if encoding == "utf-8" else "set PYTHONUTF8=1"
        raise UserError(f"the argument {os.fsencode(arg)!r} is not in {encoding.upper()}; {advice}") from error
