"""A command run, with libraries that are quiet and the parser's errors in one line."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lit_ft.cli.commands import check, convert, download
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.config.saved_data import add_saved_data
from lit_ft.cli.failures import raise_again, raise_user_errors
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.cli.messages import Complaint, explain
from lit_ft.cli.process import quiet_libraries
from lit_ft.compat import parsing_settings
from lit_ft.errors import find_user_error, find_user_packages, is_from_user_code

_WITHOUT_TRAINER = {
    "check": (check.add_arguments, check.run),
    "convert": (convert.add_arguments, convert.run),
    "download": (download.add_arguments, download.run),
}


def run_command(command: str, args: Sequence[str]) -> int:
    """Runs a command with its options, and returns the exit code.

    Raises:
        UserError: After an error in the arguments, the config, or what they name.
    """
    with quiet_command():
        if command not in _WITHOUT_TRAINER:
            FineTuneCLI(command, add_saved_data(command, args)).execute()
            return 0
        add_arguments, run = _WITHOUT_TRAINER[command]
        cli = ConfigCLI(command, args, add_arguments)
        with raise_user_errors(find_user_packages(cli.config.as_dict())):
            return run(cli)


@contextmanager
def quiet_command() -> Iterator[None]:
    """Quiets libraries, and finds the user error behind what they raise.

    Raises:
        UserError: If there is one.
    """
    quiet_libraries()
    # Else a config or a checkpoint could have any class called, below a dict of options that may have any value.
    with parsing_settings(instantiate_subclass_spec_in_any=False):
        try:
            yield
        except ArgumentError as error:
            if is_from_user_code(error):
                raise
            raise explain(Complaint(str(error))) from error
        except Exception as error:
            if (mistake := find_user_error(error)) is not None:
                raise_again(mistake, error)
            raise
