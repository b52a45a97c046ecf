"""Runs of two processes, as torchrun starts them, one of which meets a fault: how each ends, and how soon."""

import ctypes
import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import torch
from image_files import save_photo
from lightning.pytorch.utilities import rank_zero_only

from lit_ft import FineTuneModule
from lit_ft.cli import main as lit_ft_main

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
DIGITS = ("--config", str(QUICKSTART), "--model.weights", "null", "--name", "run", "--trainer.accelerator", "cpu")
DIGITS += ("--unfreeze", "null", "--report", "null", "--trainer.max_epochs", "3000")
SHORT_WAIT = ("--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "0:00:05")
LAST = "logs/run/version_0/checkpoints/last.ckpt"
RESUME = f"; to resume: the same command with --ckpt_path {LAST}"
SECONDS = 120  # for what must happen before a fault, on a busy machine


@dataclass
class End:
    """How a process has ended: exit code, seconds since the fault, and the lines on stderr without warnings."""

    code: int
    seconds: float
    lines: list[str]


class TwoRanks:
    """Two processes of a run in a folder, of one node or of two.

    Args:
        folder: Where they run, and what they print goes to.
        args: The command.
        spoil: Called with the rank in each process before it begins.
        variables: Of the environment of both.
    """

    def __init__(self, folder, *args, spoil=None, num_nodes=1, **variables):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        of_node = 2 // num_nodes
        self.shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(of_node),
            "TORCHELASTIC_RUN_ID": "faults", "TORCHELASTIC_RESTART_COUNT": "0", **variables,
        }  # fmt: skip
        self.ranks = []
        for rank in range(2):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank % of_node), "GROUP_RANK": str(rank // of_node)}
            files = {"out": folder / f"out{rank}.txt", "err": folder / f"err{rank}.txt"}
            given = (list(map(str, args)), rank, spoil, str(folder))
            self.ranks.append(forked.start(enter, *given, **files, **self.shared, **own))

    def wait_for(self, condition, seconds=SECONDS):
        """Waits until something is so."""
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until or any(rank.exitcode is not None for rank in self.ranks):
                self.kill()
                raise RuntimeError("\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("*.txt"))))
            time.sleep(0.02)

    def wait_for_epochs(self, number=2):
        """Waits until some epochs are in the history."""
        history = self.folder / "logs" / "run" / "version_0" / "history.csv"
        self.wait_for(lambda: history.is_file() and history.read_bytes().count(b"\n") > number)

    def signal(self, rank, number):
        """Sends one a signal."""
        os.kill(self.ranks[rank].pid, number)

    def ends(self, which=(0, 1), seconds=SECONDS):
        """How some of them end, with the seconds from now on; no launcher ends one as another one failed."""
        since, ended = time.monotonic(), {}
        while len(ended) < len(which):
            for rank in set(which) - ended.keys():
                if (code := self.ranks[rank].exitcode) is not None:
                    lines = (self.folder / f"err{rank}.txt").read_text(errors="replace").splitlines()
                    lines = [line for line in lines if not line.startswith("lit-ft: warning: ")]
                    ended[rank] = End(code, time.monotonic() - since, lines)
            if time.monotonic() - since > seconds:
                self.kill()
            time.sleep(0.02)
        return [ended[rank] for rank in which]

    def kill(self):
        """Ends both."""
        for process in self.ranks:
            process.kill()
            process.join()


def enter(args, rank, spoil, folder):
    """A process of the run."""
    os.chdir(folder)
    torch.set_num_threads(1)
    rank_zero_only.rank = rank  # which Lightning reads from the environment as it is imported
    if spoil is not None:
        spoil(rank, Path(folder))
    return lit_ft_main(args)


@contextmanager
def two_ranks(*args, **options):
    """Two processes, which are gone afterwards."""
    ranks = TwoRanks(*args, **options)
    try:
        yield ranks
    finally:
        ranks.kill()


def photos(folder, each=16):
    """Noise of three colours, by class: the options of a run on them."""
    numbers = np.random.default_rng(0)
    for label in range(3):
        for i in range(each):
            save_photo(folder / "photos" / str(label) / f"{i}.png", tuple(map(int, numbers.integers(0, 255, 3))))
    return (
        "fit", "--name", "run", "--model.backbone", "squeezenet1_1", "--model.weights", "null",
        "--model.input.size", 64,
        "--data", "ImageFolderDataModule", "--data.root", folder / "photos", "--data.batch_size", 4,
        "--unfreeze", "null", "--trainer.accelerator", "cpu", "--trainer.max_epochs", 3000, "--report", "null",
    )  # fmt: skip


def lose_rights(rank, folder):
    """Lets rights of files hold for a process of root as well."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # of version 3, of this process
        data = (ctypes.c_uint32 * 6)()
        libc.capget(header, data)
        for word in (0, 1):  # effective and permitted, without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            data[word] &= ~0b110
        if libc.capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")


def lose_a_number(rank, folder):
    """Lets the second process have a loss that is not finite, once a file says so."""
    step = FineTuneModule.training_step

    def poisoned(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * torch.nan if rank == 1 and (folder / "now").exists() else loss

    FineTuneModule.training_step = poisoned


def set_clock(rank, folder):
    """Lets the clock of the second process, or of the first, go back by a day, once a file says so."""
    now = time.time
    time.time = lambda: now() - 86400 * (folder / f"now{rank}").exists()


def children(pid):
    """The processes that a process has started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
