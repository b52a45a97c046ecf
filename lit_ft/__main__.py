"""The entry of ``lit-ft`` and ``python -m lit_ft``: runs a command, and tells a mistake in one line."""

from __future__ import annotations

import sys

from lit_ft.errors import UserError, check_torchvision


def main() -> int:
    """Runs the command line.

    Returns:
        The exit code: 0, or 2 after a mistake of the user's, told in one line on stderr.
    """
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        check_torchvision()
        from lit_ft.cli import run

        run()
    except UserError as error:
        if debug:
            raise
        print(f"lit-ft: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"lit-ft: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
