"""Signals that end a run: what a scheduler, a launcher or a person sends, and the seconds until the process ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

GRACE_SECONDS = 7.0
"""From a signal to the end of a process that waits for others; torchrun and SLURM kill after some 30 s."""

REQUEUE_SECONDS = 60.0
"""To the end of a batch, after a signal that announces the end of a job's time, which is sent as early as asked for."""

_ENDING = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The end of a run by a signal; a `KeyboardInterrupt`, so that libraries close what they have open as for Ctrl-C.

    Args:
        number: The signal.
        message: What is printed at the end of the process, ``""`` for nothing; None until it is known.
        code: The exit code; None for the usual one of the signal.
    """

    def __init__(self, number: int, message: str | None = None, code: int | None = None) -> None:
        super().__init__(message or "")
        self.number = signal.Signals(number)
        self.message = message
        self.code = 128 + number if code is None else code


class SignalWatch:
    """Receives the signals that end a run.

    They end it at once, by an exception in the main thread, except between `hold` and `release`: there the loop asks
    for ``received`` at the end of a batch, to end all processes at the same one. A thread ends the process where the
    exception cannot, as the main thread waits in a collective for a process that is gone.

    Args:
        requeue: The signal that announces the end of a job's time, where there is one.
        end_job: Does what the job needs then, and gives the end with what to say of it.
    """

    def __init__(
        self, requeue: int | None = None, end_job: Callable[[Interrupted], Interrupted] = lambda end: end
    ) -> None:
        self.requeue = requeue
        self._end_job = end_job
        self.received: int | None = None
        self.describe: Callable[[int], str] = lambda number: f"ended by {signal.Signals(number).name}"
        """What the thread prints."""
        self.is_alone = True
        """Whether there is no other process that this one could wait for, for ever."""
        self._tells = -1
        self._print_lost: Callable[[Any], object] = sys.unraisablehook
        self._is_lost = False  # that the run is ended, where Python lets no exception out
        self._holds = False
        self._longest = 0.0  # between two ends of batches
        self._last: float | None = None
        self._deadline: float | None = None

    @property
    def numbers(self) -> list[int]:
        """The signals that it receives."""
        return [*_ENDING, *([self.requeue] if self.requeue else [])]

    def hold(self) -> None:
        """Lets the next signal wait for the end of a batch."""
        self._holds = True

    def end_batch(self) -> None:
        """Measures how long it takes to the end of a batch, which a signal then has to wait for."""
        now = time.monotonic()
        self._longest = max(self._longest, now - (self._last or now))
        self._last = now

    def release(self) -> None:
        """Lets signals end the run at once again, also one that has waited.

        Raises:
            Interrupted: If there is one.
        """
        self._holds, self._last = False, None
        if self.received is not None:
            raise Interrupted(self.received)

    def give_time(self, seconds: float | None) -> None:
        """Lets the process end so long after now at the latest; None lets it take any time, as to save."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def finish(self, end: Interrupted) -> Interrupted:
        """The end of the process, after what the job needs at the end of its time, however long that takes."""
        self.give_time(None)
        return self._end_job(end) if end.number == self.requeue else end

    def set_requeue(self, number: int | None) -> None:
        """Sets the signal that announces the end of a job's time, once that is known; None for none."""
        if number is not None and number != self.requeue and _watch is self:
            signal.signal(number, self._handle)
        self.requeue = number

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Receives signals; not those that are ignored, as in the background of a shell, nor in other threads."""
        before = {
            number: handler for number in self.numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN
        }
        if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
            before = {}
        if not before:
            yield
            return
        global _watch
        hears, tells = os.pipe()
        os.set_blocking(tells, False)
        self._tells = tells
        thread = threading.Thread(target=self._keep_time, args=(hears,), name="signals", daemon=True)
        outer, _watch = _watch, self
        earlier = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
        hook, sys.unraisablehook = sys.unraisablehook, self._see_lost
        self._print_lost = hook
        for number in before:
            signal.signal(number, self._handle)
        thread.start()
        try:
            yield
        finally:
            self._is_lost = False
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(earlier)
            sys.unraisablehook = hook
            _watch = outer
            os.write(tells, _NO_SIGNAL)
            thread.join()
            os.close(tells)
            os.close(hears)

    def _handle(self, number: int, frame: object) -> None:
        is_again = self.received is not None and not self._is_lost
        self._is_lost = False
        self.received = self.received or number
        # A person who asks once more does not want to wait for the batch.
        if (self._holds and is_again and number == signal.SIGINT) or not (self._holds or is_again):
            self._holds = False
            if not _is_forking:
                raise Interrupted(number)
            self._send_again()

    def _see_lost(self, found: Any) -> None:
        """Takes what Python cannot raise, as in a finalizer or in what is called as a process is forked.

        After a signal, that is of finalizers of what it left half made, too.
        """
        if isinstance(found.exc_value, Interrupted):
            self._send_again()
        elif self.received is None:
            self._print_lost(found)

    def _send_again(self) -> None:
        self._is_lost = True
        os.write(self._tells, _AGAIN)

    def seconds_to_end(self, number: int) -> float | None:
        """The time that a signal leaves the process; None where nothing but a long batch can delay its end."""
        if not self._holds:
            return GRACE_SECONDS
        least = REQUEUE_SECONDS if number == self.requeue else GRACE_SECONDS
        return None if self.is_alone else least + 2 * self._longest  # of this batch, and of the next one

    def _keep_time(self, hears: int) -> None:
        """Ends the process when its time is over."""
        first: int | None = None
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            if select.select([hears], [], [], left if first else None)[0]:
                received = os.read(hears, 64)
                if _NO_SIGNAL in received:
                    return
                ending = [number for number in received if number in self.numbers]
                if ending and first is None:
                    first = ending[0]
                    self.give_time(self.seconds_to_end(first))
                if _AGAIN in received and first is not None:
                    time.sleep(_AGAIN_SECONDS)
                    if self._is_lost:  # and the run has not come to its end
                        signal.pthread_kill(threading.main_thread().ident or 0, first)
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                end = self.finish(Interrupted(first or signal.SIGTERM, self.describe(first or signal.SIGTERM)))
                print(f"lit-ft: {end.message}", file=sys.stderr, flush=True)
                os._exit(end.code)


_NO_SIGNAL = b"\0"
_AGAIN = b"\xff"
_AGAIN_SECONDS = 0.01  # in which the finalizer, or what it was, has ended; else it is sent once more
_watch: SignalWatch | None = None
_mask: set[int] = set()  # of signals that are blocked, as a process is forked
_is_forking = False  # where other threads may get a signal all the same


def current_watch() -> SignalWatch | None:
    """The watch that receives the signals of this process, if one does."""
    return _watch


def _block() -> None:
    """Lets signals wait until a process is forked: the new one would report those to its parent that come before."""
    global _mask, _is_forking
    if _watch is not None:
        _is_forking = True
        _mask = signal.pthread_sigmask(signal.SIG_BLOCK, _watch.numbers)


def _unblock() -> None:
    global _is_forking
    if _watch is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _mask)
        _is_forking = False


def _forget_in_child() -> None:
    """Lets a forked process handle signals as usual, and not report them to its parent."""
    global _watch, _is_forking
    if _watch is None:
        return
    _is_forking = False
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _watch.requeue:
        signal.signal(_watch.requeue, signal.SIG_IGN)
    _watch = None
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget_in_child)
