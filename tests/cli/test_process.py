import os
import signal
import time

import pytest

from lit_ft.cli.process import ended_by_signals
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
