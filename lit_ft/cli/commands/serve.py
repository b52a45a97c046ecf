"""``lit-ft serve``: predictions over HTTP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec

from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.errors import UserError

_LIBRARIES = ("litserve", "python_multipart")


def run(args: Sequence[str]) -> int:
    """Serves a checkpoint until Ctrl-C."""
    parser = CommandParser(prog="lit-ft serve", description=COMMANDS["serve"])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or the folder of a run")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="127.0.0.1, which only this machine reaches (default), or 0.0.0.0 or ::, which all its networks reach",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="PORT", help="port to listen on (default 8000)")
    parser.add_argument(
        "--max_batch", type=int, default=16, metavar="N", help="most images that are predicted at once (default 16)"
    )
    parser.add_argument(
        "--max_mb", type=float, default=20.0, metavar="MB", help="largest upload in megabytes (default 20)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="where to compute; by default a GPU, if there is one")
    given = parser.parse_args(args)
    for library in _LIBRARIES:
        if find_spec(library) is None:
            raise UserError(f"lit-ft serve needs {library}; pip install 'lit_ft[serve]'")
    from lit_ft.serving.server import serve

    host = "127.0.0.1" if given.host == "localhost" else given.host
    try:
        serve(given.checkpoint, host, given.port, given.max_batch, given.max_mb, given.device)
    except UserError as error:
        message = error.args[0].replace("`ckpt_path`", "CHECKPOINT")
        raise UserError(re.sub(r"`(host|port|max_batch|max_mb|device)`", r"--\1", message)) from error
    return 0
