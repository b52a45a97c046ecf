import os
import platform
import resource
from types import SimpleNamespace

import forked
import pytest
import torch

from lit_ft import memory
from lit_ft.cli import main
from lit_ft.training.trainer import Trainer


def page_faults_of_large_tensors(keeps):
    keeps()
    faults = []
    for _ in range(5):  # the first rounds write to memory that the parent process had freed and still shares
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(3):
            torch.ones(10_000_000)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults)


def make_trainer():
    Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def run_command():
    main(["describe", "mnist_cnn"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
@pytest.mark.parametrize("keeps", [make_trainer, run_command])
def test_freed_memory_is_not_fetched_from_the_system_page_by_page_again(keeps):
    # Else 29,298: each page of 4 kB of each tensor of 40 MB, for which glibc by itself always asks the system.
    assert forked.call(page_faults_of_large_tensors, keeps) < 1000


@pytest.mark.parametrize(("name", "calls"), [("MALLOC_ARENA_MAX", 2), ("MALLOC_TRIM_THRESHOLD_", 0)])
def test_what_the_user_chose_of_memory_is_left(name, calls, monkeypatch):
    called = []
    for variable in [*os.environ]:
        if variable.startswith("MALLOC_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv(name, "131072")
    library = SimpleNamespace(mallopt=lambda *given: called.append(given))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory.keep_freed_memory()
    assert len(called) == calls
