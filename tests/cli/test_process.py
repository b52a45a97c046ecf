import os
import signal
import time

import pytest

from lit_ft.cli.process import bared_broken_pipe, ended_by_signals
from lit_ft.errors import LibraryError
from lit_ft.training.signals import Interrupted


class _HalfMade:
    """As torch's iterator of a loader, whose finalizer fails where a signal ends its constructor."""

    gone = False

    def __init__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    def __del__(self):
        _HalfMade.gone = True
        raise AttributeError("_workers_status")


def test_what_a_signal_leaves_half_made_is_gone_in_silence_when_the_command_ends(capfd):
    with pytest.raises(Interrupted), ended_by_signals():
        _HalfMade()
    assert _HalfMade.gone
    assert capfd.readouterr() == ("", "")


def _raise_of_a_broken_pipe():
    try:
        raise BrokenPipeError(32, "Broken pipe")
    except OSError as error:
        raise LibraryError("[Errno 32] Broken pipe") from error


@pytest.mark.parametrize("is_read", [False, True])
def test_broken_pipe_is_bared_where_nobody_reads_the_output(is_read):
    reader, writer = os.pipe()
    output = os.dup(1)
    os.dup2(writer, 1)
    if not is_read:
        os.close(reader)
    try:
        with pytest.raises(LibraryError if is_read else BrokenPipeError), bared_broken_pipe():
            _raise_of_a_broken_pipe()
    finally:
        os.dup2(output, 1)
        for one in (output, writer, *([reader] if is_read else [])):
            os.close(one)
