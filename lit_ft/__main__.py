"""The entry of ``lit-ft`` and ``python -m lit_ft``: runs a command, and tells a mistake in one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from lit_ft.assets import OFFLINE, is_offline
from lit_ft.cli.commands import listed
from lit_ft.errors import UserError, check_torchvision, for_command_line, printable


def main() -> int:
    """Runs the command line.

    Returns:
        The exit code: 0; 1 where ``check`` found what hurts; 2 after a mistake of the user's, told in one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes may have what a terminal has not
            stream.reconfigure(errors="backslashreplace")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that class paths of modules in this folder are found, as with python -m
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    if "--offline" in sys.argv:
        sys.argv.remove("--offline")
        os.environ[OFFLINE] = "1"
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        _refuse_undecoded(sys.argv[1:])
        if listed(sys.argv[1:]):
            return 0
        check_torchvision()
        if sys.argv[1:2] in (["models"], ["describe"]):  # need no Lightning, which is slow to load
            from lit_ft.cli import models as catalog

            catalog.run(sys.argv[1:])
        else:
            from lit_ft.cli.lightning import run

            return run()
    except UserError as error:
        if debug:
            raise
        print(f"lit-ft: {printable(for_command_line(' '.join(error.args[0].split())))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"lit-ft: {printable(str(error)) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _refuse_undecoded(args: Sequence[str]) -> None:
    """Raises `UserError` for an argument that is no text, such as a path whose name is of another encoding."""
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError as error:
            encoding = sys.getfilesystemencoding()
            advice = "rename what it names" if encoding == "utf-8" else "set PYTHONUTF8=1"
            raise UserError(f"the argument {os.fsencode(arg)!r} is not in {encoding.upper()}; {advice}") from error


if __name__ == "__main__":
    sys.exit(main())
