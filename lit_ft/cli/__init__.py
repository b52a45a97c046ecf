"""The command line: arguments in, exit code out, a user error as one line; and the same from Python, in ``api``."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from lit_ft.cli.command_line import print_version, refuse_arguments, unknown_command
from lit_ft.cli.commands import COMMANDS, OWN_PARSERS, PREDICT_OPTIONS, print_commands
from lit_ft.cli.config.advice import name_as_typed
from lit_ft.cli.process import (
    bared_broken_pipe,
    ended_by_signals,
    loading,
    prepare_terminal,
    restored_process,
    set_offline,
    warn_in_one_line,
)
from lit_ft.errors import (
    LibraryError,
    UserError,
    check_torchvision,
    for_command_line,
    hide_passwords,
    is_from_user_code,
    printable,
)
from lit_ft.own_code import find_trace
from lit_ft.training.launch import is_other_process, wait_for_first_process
from lit_ft.training.signals import Interrupted


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command and leaves the process as it was.

    Args:
        args: The command and its options; ``None`` takes those of the process.

    Returns:
        The exit code: 0; 1 if ``check`` found what hurts a training, or ``verify`` a difference; 2 after a user error;
        130 after an interrupt, 143 after SIGTERM; 141 where nobody reads the output any more.
    """
    given = [*(sys.argv[1:] if args is None else args)]
    with restored_process():
        prepare_terminal()
        warn_in_one_line()
        set_offline("--offline" in given)
        try:
            with bared_broken_pipe(), _refusing_long_paths():
                return _run([arg for arg in given if arg not in ("--debug", "--offline")])
        except UserError as error:
            if "--debug" in given:
                raise
            _print_error(error, given)
            return 2
        except SystemExit as stop:
            if stop.code:
                raise
            return 0  # after a help, or a config that was printed
        except BrokenPipeError:  # who reads the output, such as `head`, wants no more of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would try once more at its end
            return 141
        except Interrupted as error:
            if error.message or (error.message is None and not is_other_process()):
                _print_end(printable(error.message or f"interrupted by {error.number.name}"))
            return error.code
        except KeyboardInterrupt:
            _print_end("interrupted")
            return 130


@contextmanager
def _refusing_long_paths() -> Iterator[None]:
    """Makes a user error of a path that is longer than the system has any, wherever it is looked for."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or is_from_user_code(error):
            raise
        raise UserError(f"{str(error.filename)[:60]}...: is too long for a path; name a file or a folder") from error


def _print_error(error: UserError, given: Sequence[str]) -> None:
    """Prints the line of a user error, below the traceback of the user's own code that it came of."""
    if not error.has_trained:
        wait_for_first_process()
    if trace := find_trace(error):
        print(printable(trace, lines=True), file=sys.stderr)
    hint = " (--debug shows where)" if isinstance(error, LibraryError) else ""
    line = for_command_line(" ".join(error.args[0].split()))
    print(f"lit-ft: {printable(hide_passwords(name_as_typed(line, given)))}{hint}", file=sys.stderr)


def _print_end(line: str) -> None:
    bar = "\n" if sys.stderr.isatty() else ""  # which the cursor may be behind
    print(f"{bar}lit-ft: {line}", file=sys.stderr)


def _run(args: Sequence[str]) -> int:
    """Loads what a command needs, which can take seconds, and runs it."""
    refuse_arguments(args)
    if not args:
        raise UserError(f"which command? One of {', '.join(COMMANDS)}; see lit-ft --help")
    command, *options = args
    if command in ("-h", "--help"):
        print_commands()
        return 0
    if command in ("--version", "-V", "version"):
        print_version()
        return 0
    if command not in COMMANDS:
        raise unknown_command(command, options)
    if command not in ("verify", "recipes"):  # the first needs no torch for a file of ONNX, and the second none at all
        with loading():  # as it imports both
            check_torchvision()
        if command != "serve":  # which would keep for good what its largest image took
            from lit_ft.memory import keep_freed_memory

            keep_freed_memory()
    if command in ("models", "describe"):
        with loading():
            from lit_ft.cli.commands.models import run as run_catalog
        run_catalog(command, options)
        return 0
    by_config = command == "predict" and _is_of_config(options)
    if command in OWN_PARSERS and not by_config:
        with loading():
            module = import_module(f"lit_ft.cli.commands.{command}")
        code: int = module.run(options)
        return code
    with ended_by_signals():  # also while the libraries are loaded
        with loading():
            from lit_ft.cli.run import run_command
        warn_in_one_line()  # once more, as Lightning has its own format, which it sets as it is loaded
        return run_command(command, options)


def _is_of_config(options: Sequence[str]) -> bool:
    """Whether the options of ``predict`` are those of a config, and not of a checkpoint and photos."""
    first = options[0].partition("=")[0] if options else ""
    return first.startswith("-") and first not in PREDICT_OPTIONS
