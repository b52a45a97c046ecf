"""A command that takes a config, run with its options: those of the trainer, and those that need none."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_ft.cli.config.arguments import put_word_first, settle_arguments
from lit_ft.cli.config.checkpoint import add_saved_data
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.failures import quiet_command, raise_user_errors
from lit_ft.cli.fold_runs import execute
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.errors import UserError, find_user_packages, printable
from lit_ft.model.checkpoint import EXPORTED
from lit_ft.tuning.space import TuneConfig

if TYPE_CHECKING:
    from lit_ft.cli.commands.tune import Tuning


def run_command(command: str, args: Sequence[str]) -> int:
    """Runs a command with its options, and returns the exit code."""
    args = settle_arguments(command, args)
    args = put_word_first(args) if command in ("validate", "test") else args
    if command == "test" and args and Path(args[0]).suffix.lower() in EXPORTED:
        from lit_ft.cli.commands.test import test_file  # here, as a training starts sooner without it, as below

        return test_file(args)
    with quiet_command():
        if command not in _WITHOUT_TRAINER:
            execute(FineTuneCLI(command, add_saved_data(command, args)))
            return 0
        run, own = _WITHOUT_TRAINER[command]
        cli = ConfigCLI(command, args, own)
        if command == "tune":  # which tells options from faults itself, as its trials train
            return run(cli)
        with raise_user_errors(find_user_packages(cli.config.as_dict())):
            return run(cli)


def _check(cli: ConfigCLI) -> int:
    from lit_ft.data.checks.check_data import check
    from lit_ft.data.checks.report import print_check

    return print_check(check(cli.make_data()), cli.config["folder"])


def _probe(cli: ConfigCLI) -> int:
    from lit_ft.cli.commands.probe import probe

    return probe(cli)


def _tune(cli: ConfigCLI) -> int:
    search(cli)
    return 0


def search(cli: ConfigCLI) -> Tuning:
    """Searches as a config says.

    Raises:
        UserError: If Optuna is not installed, the config is refused, or no trial could be completed.
    """
    if find_spec("optuna") is None:
        raise UserError("lit-ft tune needs optuna; pip install 'lit_ft[tune]'")
    from lit_ft.cli.commands.tune import tune

    return tune(cli)


def _download(cli: ConfigCLI) -> int:
    from lit_ft.cli.commands.download import download

    return download(cli)


def _convert(cli: ConfigCLI) -> int:
    from lit_ft.data.modules.photos import PhotoDataModule
    from lit_ft.data.streaming.convert import convert

    data = cli.make_data()
    if not isinstance(data, PhotoDataModule) or not data.in_files:
        raise UserError(f"`data`: lit-ft convert takes photos in files, not {type(data).__name__}")
    made = convert(data, cli.config["folder"])
    print(f"Train on it: --data StreamDataModule --data.root {printable(shlex.quote(str(made)))}")
    return 0


_OPTIONAL = {"type": str | None, "default": None}
_PAGE = "The folder that check.html, a page of pictures, and check.json go to; null writes neither."
_PROBED = "The folder that probe.html, probe.json, suggested.yaml and label_issues.csv go to; null writes nothing."
_BACKBONES = "Names with commas, each perhaps with its weights, as NAME=FILE or NAME=TAG; null takes the config's own."
_STAGES = "Whether all stages are measured, or just the features of the last one."
_BUDGET = "Time for a trial of fine-tuning against the linear probe, such as 90s, 5m or 1h; null tries none."
_FETCHED = "The folder of data and weights; null takes the variable LIT_FT_DATA, or data."
TUNE_OPTIONS: dict[str, dict[str, Any]] = {"tune": {"type": TuneConfig, "default": TuneConfig()}}
"""How the parser takes the section of a search."""
_WITHOUT_TRAINER: dict[str, tuple[Callable[[ConfigCLI], int], dict[str, dict[str, Any]]]] = {
    "check": (_check, {"folder": {**_OPTIONAL, "help": _PAGE}}),
    "probe": (
        _probe,
        {
            "backbones": {**_OPTIONAL, "help": _BACKBONES},
            "stages": {"type": Literal["all", "last"], "default": "all", "help": _STAGES},
            "folder": {**_OPTIONAL, "help": _PROBED},
            "budget": {**_OPTIONAL, "help": _BUDGET},
        },
    ),
    "tune": (_tune, TUNE_OPTIONS),
    "convert": (_convert, {"folder": {"type": str, "required": True, "help": "The folder to make."}}),
    "download": (_download, {"folder": {**_OPTIONAL, "help": _FETCHED}}),
}
"""The function of each, and how the parser takes its own options."""
