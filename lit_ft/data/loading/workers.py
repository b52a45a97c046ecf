"""Worker processes that read images: their number, and how far they read ahead."""

from __future__ import annotations

import atexit
import gc
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from lit_ft.console import progress_bar
from lit_ft.errors import UserError, iterate_causes
from lit_ft.own_code import UserCodeError

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 16  # things that a process of `sweep` takes at a time
_FEW = 64  # fewer for each process are looked at before it has started
_SHARED = Path("/dev/shm")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MOST = 8  # beyond so many processes a training process seldom gets its batches faster
_OUTLIVES_SECONDS = 10  # a signal that the training process gets, too, and has ended by then
_LOST_WORKER = re.compile(r"DataLoader worker \(pid[\d(s), ]+ (is killed by signal: [\w ]+\w|exited unexpectedly)")
_AHEAD = 4  # batches that a worker is ahead where there is room: one slow image holds nothing up


class Workers(NamedTuple):
    """Processes that read images."""

    number: int  # 0 for none but this one
    prefetch: int = 2  # batches that each has ready, or is at
    pin_memory: bool = False  # whether batches come to lie where a GPU fetches them from fastest


def usable_cpus() -> int:
    """The CPUs that this process may use: by its affinity, and by the limit of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return cpus


def check_workers(asked: int | None) -> None:
    """Raises `UserError` for a number of processes that there cannot be."""
    if asked is not None and asked < 0:
        raise UserError(f"`data.num_workers`: {asked} is less than 0")


def choose_workers(
    batch_bytes: int, num_batches: int, processes_per_node: int = 1, asked: int | None = None
) -> Workers:
    """The processes that read for one training process: as many as asked, else the CPUs it may count on, less itself.

    No more than batches in an epoch: a handful is read before as many processes have started.
    """
    cpus = max(0, min(_MOST, usable_cpus() // processes_per_node - 1))
    count = min(cpus if asked is None else asked, num_batches)
    if not _SHARED.is_dir():
        return Workers(count, _AHEAD)
    # Workers hand batches on through it. Containers have 64 MB by default, and who writes beyond it is killed. Half is
    # left to others.
    room = shutil.disk_usage(_SHARED).free // 2 // processes_per_node // batch_bytes
    if asked is None:
        count = min(count, room // 2)
    return Workers(count, max(1, min(_AHEAD, room // max(1, count))))


def workers_for(trainer: Any, num_images: int, batch_size: int, image_bytes: int, asked: int | None) -> Workers:
    """The processes that read a split of a data module, by its trainer, if it has one; see `choose_workers`."""
    processes = trainer.num_devices if trainer else 1
    workers = choose_workers(batch_size * image_bytes, math.ceil(num_images / batch_size), processes, asked)
    on_gpu = trainer.strategy.root_device.type == "cuda" if trainer else torch.cuda.is_available()
    return workers._replace(pin_memory=on_gpu)


@dataclass
class _Epoch:
    """The sampler of a DataLoader, whose batches change from epoch to epoch while its workers live on."""

    batches: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class InWorkers:
    """Worker processes that live on from epoch to epoch, and make batches in the order in which they are asked for.

    Args:
        dataset: Makes a batch of what it is asked for. It returns a `UserError` rather than raises it: a worker's
            exception reaches the main process with the whole traceback as its text, what is returned as it is.
        workers: The processes; none but this one when not given.
    """

    def __init__(self, dataset: Dataset[Any], workers: Workers | None = None) -> None:
        workers = workers or Workers(0)
        self.dataset = dataset
        self._epoch = _Epoch()
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,  # the sampler's batches are read as they are
            sampler=self._epoch,
            num_workers=workers.number,
            prefetch_factor=workers.prefetch if workers.number else None,
            persistent_workers=workers.number > 0,
            pin_memory=workers.pin_memory,
            worker_init_fn=_begin_worker,
            multiprocessing_context=_start_method() if workers.number else None,
            # One of its own: without it, each epoch draws a number from the global generator, and a run that is
            # resumed in the middle of an epoch, or had to look at its images first, would see other dropout.
            generator=torch.Generator(),
        )
        self._loader = [loader]  # a list, to let go of it
        # What a finalizer holds is no garbage. As part of a cycle, such as that of a trainer and its loops, the loader
        # would lose the queues by which it tells its workers to end, and then wait 5 s for each.
        weakref.finalize(self, self._loader.clear)
        self._has_begun = False

    def batches(self, asked: Iterable[Any]) -> Iterator[Any]:
        """Yields what is made of each thing asked; raises `UserError` where that was returned."""
        self._epoch.batches = asked
        reading = iter(self._loader[0])
        if not self._has_begun:
            # At the exit it comes before what torch has registered by now, which waits 5 s for workers that nobody has
            # told to end, where memory is pinned.
            atexit.register(self._loader.clear)
            self._has_begun = True
        for batch in reading:
            if isinstance(batch, UserCodeError) and batch.__cause__ is None:  # which a worker does not hand on
                raise batch from RuntimeError(f"\n{batch.trace}")
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _start_method() -> str | None:
    """How workers are started: by a fork on Linux, unless the program has asked for another way than Python's own.

    From 3.14 on Python has a server do that there, whose processes each import torch and all else anew, which takes
    seconds, and get a copy of what they read from, which not all can pickle.
    """
    of_python = "forkserver" if sys.version_info >= (3, 14) else "fork"
    is_default = multiprocessing.get_start_method(allow_none=True) in (None, of_python)
    return "fork" if sys.platform == "linux" and is_default else None


def explain_lost_worker(error: BaseException) -> str | None:
    """What became of a worker process, if an exception came of its end; torch raises it wherever its parent is then."""
    found = [match[1] for cause in iterate_causes(error) if (match := _LOST_WORKER.search(str(cause)))]
    if not found:
        return None
    advice = "as when memory, or that in /dev/shm, runs out; fewer `data.num_workers` take less"
    return f"a worker process that reads images {found[-1].replace('is killed', 'was killed')}, {advice}"


def _begin_worker(_: int) -> None:
    """Leaves to the parent what was its garbage at the fork, and lets a worker outlive signals.

    Loaders of an earlier fit can be among it: to collect them here, where their workers are no children, fails aloud.
    """
    gc.freeze()
    _outlive_signals()
    sys.excepthook = partial(_print_unless_left, sys.excepthook)


def _print_unless_left(
    hook: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an exception, unless the parent of a worker was interrupted while the worker handed it a batch.

    Python's thread that hands on memory has `sys.excepthook` print that; in a worker nothing else does.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        hook(kind, error, trace)


def _outlive_signals() -> None:
    """Lets a worker outlive a signal that all processes of a run get: it still reads the batches of the step to come.

    It ends when its parent tells it to or has ended, and some seconds after SIGTERM of others. Where the system does
    not tell who sent a signal, as on macOS, that one ends it at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_await_end, name="signals", daemon=True).start()


def _await_end() -> None:
    sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
    if sender != os.getppid():
        signal.sigtimedwait({signal.SIGTERM}, _OUTLIVES_SECONDS)
    os._exit(0)


@dataclass
class _Each(Dataset[Any]):
    """Looks at things, some at a time, in a worker process or not."""

    things: Sequence[Any]
    look: Callable[[Any], Any]

    def __getitem__(self, chunk: range) -> list[Any] | UserError:
        try:
            return [self.look(self.things[i]) for i in chunk]
        except UserError as error:
            return error


def sweep(things: Sequence[T], look: Callable[[T], R], doing: str, workers: int | None = None) -> Iterator[R]:
    """Looks at each of many things, such as paths, in order; a bar says what it is doing, and how far.

    In so many processes, 0 for none but this one; when not given, in one a CPU, if there is enough to do. They must be
    able to pickle ``look``. A `UserError` that it raises ends the sweep.
    """
    chunks = [range(start, min(start + _CHUNK, len(things))) for start in range(0, len(things), _CHUNK)]
    if workers is None:
        workers = min(usable_cpus(), len(things) // _FEW)
        workers = workers if workers > 1 else 0
    in_workers = InWorkers(_Each(things, look), Workers(min(workers, len(chunks))))
    with progress_bar(doing, len(things)) as bar:
        for done in in_workers.batches(chunks):
            yield from done
            bar.update(len(done))
