"""What a command changes of its process, and the process restored after it."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_ft.assets import OFFLINE, is_offline
from lit_ft.errors import for_command_line, printable

# Warnings of libraries about what is intended here.
NOISE = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*`LeafSpec\(\)`.*",
    r".*treespec, LeafSpec.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*Experiment logs directory .* exists and is not empty.*",  # what is in it was renamed
    r".*callbacks used to create the checkpoint need to be provided.*",
)

_LOGGERS = ("lightning.pytorch", "lightning.fabric")


@contextmanager
def restored_process() -> Iterator[None]:
    """Restores paths, variables, warnings, log levels and streams, whatever a command and its libraries change."""
    path, variables = list(sys.path), dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    streams = {stream: stream.errors for stream in _streams()}
    format_before = warnings.formatwarning
    try:
        with warnings.catch_warnings():
            yield
    finally:
        warnings.formatwarning = format_before
        for stream, errors in streams.items():
            if not stream.closed:
                stream.reconfigure(errors=errors)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        sys.path[:] = path


def allow_any_character() -> None:
    """Lets names of files and classes be printed that have characters which the terminal does not."""
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")


def import_from_here() -> None:
    """Lets class paths name modules in this folder, as with ``python -m``."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def set_offline(offline: bool) -> None:
    """Sets the variables that keep lit_ft and the Hugging Face Hub off the network, if asked here or by a variable."""
    if offline:
        os.environ[OFFLINE] = "1"
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"


def quiet_libraries() -> None:
    """Ignores what libraries warn of and log where all is as intended."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def warn_in_one_line() -> None:
    """Prints warnings without their place in the code."""
    warnings.formatwarning = _format_warning


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"lit-ft: warning: {printable(for_command_line(str(message)), lines=True)}\n"


def _streams() -> list[io.TextIOWrapper]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
