import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from multiprocessing.util import Finalize
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from torch.utils.data import Dataset

from lit_ft.data.loading import workers
from lit_ft.data.loading.workers import InWorkers, Workers, choose_workers, usable_cpus
from lit_ft.own_code import UserCodeError

MB = 10**6


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets what the machine has: CPUs of this process, the limit of its container, and free shared memory."""

    def has(cpus, limit="max 100000", shared=None):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)), raising=False)
        monkeypatch.setattr(workers, "_CPU_LIMIT", tmp_path / "cpu.max")
        monkeypatch.setattr(workers, "_SHARED", tmp_path if shared is not None else tmp_path / "none")
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=shared))
        if limit is not None:
            (tmp_path / "cpu.max").write_text(limit)

    return has


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [(None, 16), ("max 100000\n", 16), ("400000 100000\n", 4), ("50000 100000\n", 1), ("9900000 100000\n", 16)],
)
def test_usable_cpus_are_those_of_the_container(machine, limit, cpus):
    machine(16, limit)
    assert usable_cpus() == cpus


OF_PYTHON = "forkserver" if sys.version_info >= (3, 14) else "fork"


@dataclass
class Parents(Dataset):
    """The process that a worker was started by; a worker that is no fork of it would have to pickle it."""

    unpicklable: Callable

    def __getitem__(self, _):
        return os.getppid()


@pytest.fixture
def _start_method(request):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are no forks")
@pytest.mark.parametrize("_start_method", [None, OF_PYTHON], indirect=True)
@pytest.mark.usefixtures("_start_method")
def test_workers_are_forks_of_their_process():
    assert list(InWorkers(Parents(lambda: None), Workers(1)).batches([0])) == [os.getpid()]


@pytest.mark.parametrize("_start_method", sorted({"spawn", "forkserver"} - {OF_PYTHON}), indirect=True)
@pytest.mark.usefixtures("_start_method")
def test_workers_are_started_as_the_program_asks():
    with pytest.raises(Exception, match=r"[Pp]ickle"):
        list(InWorkers(Parents(lambda: None), Workers(1)).batches([0]))


@pytest.mark.parametrize(("processes", "number"), [(1, 8), (2, 7), (4, 3), (16, 0), (32, 0)])
def test_processes_share_the_cpus_and_keep_one_each(machine, processes, number):
    machine(16)
    assert choose_workers(5 * MB, 100, processes) == Workers(number, 4)


def test_no_more_workers_than_batches(machine):
    machine(16)
    assert [choose_workers(5 * MB, n).number for n in (0, 1, 3, 100)] == [0, 1, 3, 8]
    assert [choose_workers(5 * MB, n, asked=20).number for n in (3, 100)] == [3, 20]


@pytest.mark.parametrize(
    ("shared", "processes", "chosen"),
    [
        (24_000, 1, Workers(8, 4)),
        (320, 1, Workers(8, 4)),  # half of it are 32 batches of 5 MB
        (310, 1, Workers(8, 3)),
        (160, 1, Workers(8, 2)),
        (64, 1, Workers(3, 2)),  # what containers have by default
        (64, 2, Workers(1, 3)),
        (10, 1, Workers(0, 1)),
    ],
)
def test_what_is_prefetched_fits_into_half_of_the_shared_memory(machine, shared, processes, chosen):
    machine(32, shared=shared * MB)
    assert choose_workers(5 * MB, 100, processes) == chosen
    batches = chosen.number * chosen.prefetch * processes
    assert batches * 5 <= shared / 2


def test_as_many_as_asked_are_started_and_prefetch_less(machine):
    machine(2, shared=64 * MB)
    assert choose_workers(5 * MB, 100, asked=3) == Workers(3, 2)
    assert choose_workers(5 * MB, 100, asked=12) == Workers(12, 1)
    assert choose_workers(5 * MB, 100, asked=0) == Workers(0, 4)


class _Refusing(Dataset):
    def __getitem__(self, index):
        return UserCodeError("`data.dataset`: fails", "the user's frames")


def test_error_of_own_code_in_a_worker_comes_of_its_traceback():
    with pytest.raises(UserCodeError, match=r"^data.dataset: fails$") as caught:
        next(InWorkers(_Refusing(), Workers(1)).batches([0]))
    assert str(caught.value.__cause__) == "\nthe user's frames"


def _read_on_after_signals():
    reading = InWorkers(_Pids(), Workers(1))
    batches = reading.batches(range(60))
    pid = next(batches)
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(pid, number)
    sender = os.fork()  # no parent of the worker, as a scheduler is none
    if sender == 0:
        os.kill(pid, signal.SIGTERM)
        os._exit(0)
    os.waitpid(sender, 0)
    time.sleep(0.2)
    assert set(batches) == {pid}
    begun = time.monotonic()
    os.kill(pid, signal.SIGTERM)  # of its parent
    while _is_alive(pid):
        assert time.monotonic() - begun < 5
    return 0


class _Pids(Dataset):
    def __getitem__(self, index):
        return os.getpid()


def _is_alive(pid):
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sends a signal")
def test_worker_outlives_signals_to_all_processes_of_a_run_and_obeys_its_parent(tmp_path):
    started = forked.start(_read_on_after_signals, out=tmp_path / "log")
    assert forked.wait(started) == [0], (tmp_path / "log").read_text()


class _Shared(Dataset):
    """The address at which a worker hands on memory, as that of a tensor."""

    def __getitem__(self, index):
        return resource_sharer._resource_sharer.register(lambda *_: None, lambda: None)


def _leave_while_memory_is_handed_on():
    for address, key in InWorkers(_Shared(), Workers(1)).batches(range(3)):
        Client(address).close()  # which the worker has begun to answer
        resource_sharer._resource_sharer.get_connection((address, key)).close()  # it answers one after the other
    return 0


@pytest.mark.slow
def test_worker_prints_nothing_where_its_parent_was_interrupted_as_it_took_a_batch(tmp_path):
    started = forked.start(_leave_while_memory_is_handed_on, out=tmp_path / "log")
    assert forked.wait(started) == [0]
    assert (tmp_path / "log").read_text() == ""


class _Leaving(Dataset):
    """Has its worker leave a file as it ends, unless it is killed."""

    def __init__(self, file):
        self.file = file

    def __getitem__(self, _):
        Finalize(None, self.file.write_text, ("ended",), exitpriority=0)
        return 0


def test_workers_end_by_themselves_where_they_are_left_in_a_cycle(tmp_path):
    """As those of a trainer's loops are."""
    in_workers = InWorkers(_Leaving(tmp_path / "file"), Workers(1))
    batches = in_workers.batches([0, 1, 2])
    assert next(batches) == 0
    cycle = [in_workers, batches]
    cycle.append(cycle)
    left = weakref.ref(in_workers)
    del in_workers, batches, cycle
    gc.collect()
    assert left() is None
    assert (tmp_path / "file").read_text() == "ended"


@pytest.mark.long
def test_workers_have_ended_at_the_exit_before_torch_waits_for_them(tmp_path):
    program = """
import atexit
from pathlib import Path
from test_workers import InWorkers, Workers, _Leaving
from torch.utils.data import DataLoader

file, begin = Path("file"), DataLoader.__iter__


def begin_as_with_pinned_memory(self):
    reading = begin(self)
    atexit.register(lambda: print("ended before:", file.exists()))
    return reading


DataLoader.__iter__ = begin_as_with_pinned_memory
left = InWorkers(_Leaving(file), Workers(1))
assert list(left.batches([0, 1])) == [0, 0]
"""
    folders = f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[2]}"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == ("ended before: True\n", "")


class _Garbage:
    """In a cycle, so that only a look for garbage finds it; it leaves a file with the process that collected it."""

    def __init__(self, file):
        self.file, self.itself = file, self

    def __del__(self):
        self.file.write_text(str(os.getpid()))


class _Collecting(Dataset):
    def __getitem__(self, _):
        gc.collect()
        return 0


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked there alone")
def test_workers_leave_the_garbage_of_their_parent_alone(tmp_path):
    """Such as loaders of an earlier fit, whose end in a process that is not their parent prints a traceback."""
    gc.collect()
    gc.disable()
    try:
        _Garbage(tmp_path / "collected")
        assert list(InWorkers(_Collecting(), Workers(1)).batches([0, 1])) == [0, 0]
        assert not (tmp_path / "collected").exists()
        gc.collect()
    finally:
        gc.enable()
    assert (tmp_path / "collected").read_text() == str(os.getpid())
