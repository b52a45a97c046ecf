import os
import signal
import subprocess
import sys
import threading
import time

import forked
import pytest

from lit_ft.training import signals
from lit_ft.training.signals import Interrupted, SignalWatch, current_watch


@pytest.fixture(autouse=True)
def _interrupts_as_in_a_terminal():
    # A shell lets what it runs in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def watch():
    watch = SignalWatch(signal.SIGUSR1)
    with watch.receiving():
        yield watch
    assert current_watch() is None


def send(number):
    """Sends this process a signal, whose handler has run when this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_ends_what_is_at_work_at_once(watch, number):
    with pytest.raises(Interrupted) as ended:
        send(number)
    assert (ended.value.number, ended.value.code) == (number, 128 + number)


def test_signal_waits_while_it_is_held(watch):
    watch.hold()
    assert watch.received is None
    send(signal.SIGUSR1)
    send(signal.SIGTERM)  # as of a scheduler that is then told that the job was requeued
    assert watch.received == signal.SIGUSR1
    with pytest.raises(Interrupted) as ended:
        watch.release()
    assert ended.value.number == signal.SIGUSR1


def test_second_interrupt_of_a_person_does_not_wait(watch):
    watch.hold()
    send(signal.SIGINT)
    with pytest.raises(Interrupted):
        send(signal.SIGINT)


class _SendsAtItsEnd:
    def __del__(self):
        send(signal.SIGTERM)


def test_signal_in_a_finalizer_ends_what_comes_after_it(watch, capfd):
    def work():
        _SendsAtItsEnd()  # from where Python lets no exception out, and prints it
        time.sleep(5)

    with pytest.raises(Interrupted) as ended:
        work()
    assert ended.value.number == signal.SIGTERM
    assert capfd.readouterr() == ("", "")


def test_handlers_are_those_of_before_afterwards():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    watch = SignalWatch()
    with watch.receiving():
        assert current_watch() is watch
        watch.set_requeue(signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) != handlers[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert threading.active_count() == len(threading.enumerate())
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_signal_that_is_ignored_stays_so(watch):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with SignalWatch().receiving():
            send(signal.SIGTERM)  # as in the background of a shell that gave it so
    finally:
        signal.signal(signal.SIGTERM, before)
    assert watch.received is None


def test_other_threads_receive_none():
    entered = []

    def enter():
        with SignalWatch().receiving():
            entered.append(current_watch())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [None]


_BLOCKED = """
import signal, sys, threading
from lit_ft.training import signals
from lit_ft.training import signals
from lit_ft.training.signals import SignalWatch
signals.GRACE_SECONDS = signals.REQUEUE_SECONDS = 0.3
watch = SignalWatch(signal.SIGUSR1, lambda end: type(end)(end.number, end.message + "; requeued", 0))
watch.describe = lambda number: f"rank 1: {signal.Signals(number).name}"
watch.is_alone = False
with watch.receiving():
    watch.hold()
    print("ready", flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [])
    while True:  # as a collective that nobody answers: no handler gets further than to note the signal
        threading.Event().wait(10)
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, "lit-ft: rank 1: SIGTERM"), (signal.SIGUSR1, 0, "lit-ft: rank 1: SIGUSR1; requeued")],
)
def test_process_that_waits_for_others_is_ended_in_time(number, code, line):
    with subprocess.Popen(
        [sys.executable, "-c", _BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (code, f"{line}\n")


def test_time_to_the_end_of_a_batch_is_left_by_how_long_batches_are(watch, monkeypatch):
    now = iter([10.0, 13.0, 14.0])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(now))
    for _ in range(3):
        watch.end_batch()  # the longest took 3 s
    assert watch.seconds_to_end(signal.SIGTERM) == signals.GRACE_SECONDS
    watch.hold()
    assert watch.seconds_to_end(signal.SIGTERM) is None  # no other process can keep it
    watch.is_alone = False
    assert watch.seconds_to_end(signal.SIGTERM) == signals.GRACE_SECONDS + 6
    assert watch.seconds_to_end(signal.SIGUSR1) == signals.REQUEUE_SECONDS + 6


def test_forked_process_ends_by_a_signal_and_its_parent_hears_nothing(tmp_path):
    assert forked.wait(forked.start(_fork_and_signal, out=tmp_path / "log")) == [0], (tmp_path / "log").read_text()


def _fork_and_signal():
    watch = SignalWatch()
    with watch.receiving():
        watch.hold()
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(0.1)
        watch.release()
    return 0 if os.waitstatus_to_exitcode(status) == -signal.SIGTERM else 1


_FORKS = """
import os, signal, time
# What other libraries have called, as logging, which would keep its lock if an exception ended it.
os.register_at_fork(after_in_parent=lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.01), print("after")))
from lit_ft.training.signals import Interrupted, SignalWatch
signal.pthread_sigmask = lambda *_: set()  # as where another thread gets the signal
with SignalWatch().receiving():
    try:
        if os.fork() == 0:
            os._exit(0)
        for _ in range(1000):  # a signal just before a sleep is handled after it
            time.sleep(0.01)
    except Interrupted as end:
        print(end.number.name)
"""


def test_signal_that_comes_as_a_process_is_forked_ends_what_comes_after_it():
    # From 3.12 on, Python warns of forks beside threads; a command shows none of these, as they are none of its own.
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", _FORKS], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("after\nSIGTERM\n", "")
