"""What a command changes of its process, and the process restored after it."""

from __future__ import annotations

import gc
import io
import logging
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lit_ft.assets import OFFLINE, is_offline
from lit_ft.errors import find_full_disk, for_command_line, iterate_causes, printable
from lit_ft.training.launch import end_slurm_job
from lit_ft.training.signals import Interrupted, SignalWatch

# Warnings of libraries about what is intended here.
_NOISE = (
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

_OUTPUT = 1
"""The descriptor of the standard output."""


@contextmanager
def loading() -> Iterator[None]:
    """Loads libraries without a look for garbage, here and at the end of the process.

    They make a million objects that stay, and to look through these took a quarter of the time to load, and a second
    at the end.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if is_on:
            gc.enable()


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


@contextmanager
def bared_broken_pipe() -> Iterator[None]:
    """Raises a broken pipe as such where nobody reads the output any more, whatever was made of it on its way."""
    try:
        yield
    except Exception as error:
        if _is_unread() and any(isinstance(cause, BrokenPipeError) for cause in iterate_causes(error)):
            raise BrokenPipeError from error
        raise


def _is_unread() -> bool:
    """Whether the output is a pipe that nobody reads any more, and not that of a worker, say."""
    if not hasattr(select, "poll"):  # as on Windows
        return False
    poll = select.poll()
    poll.register(_OUTPUT, 0)  # for errors alone
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Lets signals end a run in order, and a SLURM job that its time ends return to the queue.

    Raises:
        Interrupted: If a signal has ended it.
    """
    is_slurm = "SLURM_JOB_ID" in os.environ and sys.platform != "win32"
    watch = SignalWatch(signal.SIGUSR1, end_slurm_job) if is_slurm else SignalWatch()
    with watch.receiving():
        try:
            yield
        except Interrupted as end:
            final = watch.finish(end)
            for cause in iterate_causes(end):  # else what is half made has its finalizer print after the last line
                traceback.clear_frames(cause.__traceback__)
            raise final from None


def prepare_terminal() -> None:
    """Lets class paths name modules in this folder, as with ``python -m``, and any character be printed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for stream in _streams():
        stream.reconfigure(errors="backslashreplace")


def _streams() -> list[io.TextIOWrapper]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


def set_offline(offline: bool = False) -> None:
    """Sets the variables that keep lit_ft and the Hugging Face Hub off the network, if asked here or by a variable."""
    if offline:
        os.environ[OFFLINE] = "1"
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"


def quiet_libraries() -> None:
    """Ignores what libraries warn of and log where all is as intended."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def warn_in_one_line() -> None:
    """Prints warnings without their place in the code, above any progress bar."""
    warnings.formatwarning = lambda message, *_, **__: (
        f"lit-ft: warning: {printable(for_command_line(str(message)), lines=True)}\n"
    )
    show = warnings.showwarning

    def show_above_bars(*args: Any, **options: Any) -> None:
        from tqdm import tqdm  # here, as `lit-ft --help` does without it

        with tqdm.external_write_mode(file=sys.stderr):
            show(*args, **options)

    warnings.showwarning = show_above_bars


@contextmanager
def quiet_threads() -> Iterator[None]:
    """Lets no thread print that a disk is full: TensorBoard's raises the same again at the next write to it."""
    hook = threading.excepthook

    def quiet(failed: threading.ExceptHookArgs) -> None:
        if find_full_disk(failed.exc_value) is None:
            hook(failed)

    threading.excepthook = quiet
    try:
        yield
    finally:
        threading.excepthook = hook
