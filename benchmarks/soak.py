"""Measures what a fit of two processes keeps, over many epochs and over many preemptions.

    python benchmarks/soak.py [--minutes 30]

Generated photos of three classes, a small network, one loader worker a process. The plan unfreezes, freezes again and
caches features in turn, so that loaders, DDP wrappers, optimizers' groups and feature files are made and dropped again
and again. Half of the time goes to one fit: memory (RSS), file descriptors and threads of both processes are read every
two seconds, and the table has their medians in each quarter of its epochs. In the other half, runs of the same command
get SIGTERM at random moments, one in four while it starts and the others after its first epoch, sent to one process or
both, and are started again as torchrun does; after each end, files are looked for that no run should leave, and
processes that should be gone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from index import memory
from memory import family
from PIL import Image

CYCLE = [
    {"train": ["head"], "epochs": 6},
    {"train": ["stage3", "head"], "epochs": 6},
    {"train": ["head"], "epochs": 3},
    {"train": ["*"], "epochs": 3},
]
"""Phases, repeated: the first of two epochs has its features cached, and the last none frozen."""
REPEATS = 50
READ_SECONDS = 2.0
END_SECONDS = 10.0
"""From a signal to the end of all processes."""
KINDS = ("RSS, MB", "file descriptors", "threads", "processes")


class Attempt:
    """A run of two processes, as torchrun starts them.

    Args:
        folder: Where it runs.
        restarts: How often it was started before.
        options: Of the command.
    """

    def __init__(self, folder: Path, restarts: int, options: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [folder / f"attempt{restarts}-rank{rank}.log" for rank in range(2)]
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "soak", "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "TMPDIR": str(folder / "tmp"), "LIT_FT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        (folder / "tmp").mkdir(exist_ok=True)
        self.ranks = []
        for rank, log in enumerate(self.logs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as out:
                command = [sys.executable, "-m", "lit_ft", "fit", *options]
                variables = {**os.environ, **shared, **own}
                self.ranks.append(
                    subprocess.Popen(command, cwd=folder, env=variables, stdout=out, stderr=out, start_new_session=True)
                )

    def wait(self, seconds: float) -> bool:
        """Waits for the end of both; whether they have ended. Where one has failed, the other is ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            codes = [rank.poll() for rank in self.ranks]
            if None not in codes:
                return True
            if any(codes):
                self.signal(signal.SIGTERM, [0, 1])
                time.sleep(1)
            time.sleep(0.05)
        return False

    def wait_for_epoch(self) -> None:
        """Waits for the end of the first epoch of this attempt, or of the attempt."""
        while "\nepoch " not in self.logs[0].read_text(errors="replace") and not self.wait(0.2):
            pass

    def signal(self, number: int, ranks: list[int]) -> None:
        """Sends a signal to some."""
        for rank in ranks:
            self.ranks[rank].send_signal(number)

    def read(self) -> Iterator[tuple[float, ...]]:
        """What each process has, by `KINDS`; its workers count as processes."""
        for rank in self.ranks:
            own = Path("/proc", str(rank.pid))
            with suppress(OSError):  # it has just ended
                threads = len(list((own / "task").iterdir()))
                counts = (len(list((own / "fd").iterdir())), threads, len(list(family(str(rank.pid)))))
                yield (memory("Rss", str(rank.pid)), *map(float, counts))

    def groups_left(self) -> list[int]:
        """The process groups of which some process is left after the time for its end; these are then ended.

        A worker looks every five seconds whether its parent has ended.
        """
        until, left = time.monotonic() + END_SECONDS, [rank.pid for rank in self.ranks]
        while left and time.monotonic() < until:
            time.sleep(0.2)
            left = [pid for pid in left if is_group(pid)]
        for pid in left:
            os.killpg(pid, signal.SIGKILL)
        return left

    def last_lines(self) -> list[str]:
        """The last line of each."""
        return [(log.read_text(errors="replace").splitlines() or [""])[-1] for log in self.logs]


def is_group(pid: int) -> bool:
    """Whether a process group has any process."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def write_photos(folder: Path, each: int = 96) -> None:
    """Writes noise of three colours, by class."""
    random_numbers = np.random.default_rng(0)
    for label in range(3):
        (folder / str(label)).mkdir(parents=True)
        for i in range(each):
            image = random_numbers.integers(0, 128, (72, 72, 3), dtype=np.uint8)
            image[..., label] += 64
            Image.fromarray(image).save(folder / str(label) / f"{i}.jpg")


def options(folder: Path, name: str) -> list[str]:
    """Of the command."""
    plan = folder / "phases.yaml"
    plan.write_text(json.dumps({"unfreeze": {"strategy": "phases", "head_fit": "trained", "phases": CYCLE * REPEATS}}))
    data = ["--data", "ImageFolderDataModule", "--data.root", str(folder / "photos"), "--data.batch_size", "8"]
    return [
        "--name", name, "--model.backbone", "squeezenet1_1", "--model.weights", "null", *data,
        "--data.num_workers", "1", "--model.input.size", "64", "--config", str(plan),
        "--trainer.max_epochs", str(18 * REPEATS),
        "--trainer.accelerator", "cpu", "--lr_scheduler", "null", "--model.lr", "1e-4",
    ]  # fmt: skip


def watch_one(folder: Path, seconds: float) -> tuple[list[str], int]:
    """One fit of so many seconds: the rows of its table, and how many epochs it had."""
    attempt = Attempt(folder, 0, options(folder, "long"))
    history = folder / "logs" / "long" / "version_0" / "history.csv"
    begun, seen = time.monotonic(), []
    while time.monotonic() - begun < seconds and not attempt.wait(READ_SECONDS):
        if history.is_file():
            seen.append([*attempt.read()])
    attempt.signal(signal.SIGTERM, [0, 1])
    attempt.wait(END_SECONDS)
    seen = [both for both in seen if len(both) == 2]
    rows = []
    for rank in range(2):
        for i, kind in enumerate(KINDS):
            values = [both[rank][i] for both in seen]
            cells = [f"{median(part):,.0f}" for part in np.array_split(np.array(values), 4)]
            rows.append(f"| rank {rank}: {kind} | {' | '.join(cells)} | {max(values):,.0f} |")
    left, codes = attempt.groups_left(), [rank.wait() for rank in attempt.ranks]
    if left or codes not in ([143, 143], [0, 0]):
        rows.append(f"ended with {codes}, {len(left)} processes left: {attempt.last_lines()}")
    with history.open() as file:
        return rows, sum(1 for _ in csv.DictReader(file))


def preempt(folder: Path, seconds: float, chance: random.Random) -> dict[str, Any]:
    """Runs that are ended at random moments and started again, for so many seconds: what was found."""
    found: dict[str, Any] = {"sent": Counter(), "slowest": 0.0, "wrong": [], "left": [], "resumed": 0}
    begun, restarts = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        attempt = Attempt(folder, restarts, options(folder, "preempted"))
        if chance.random() < 0.75:
            attempt.wait_for_epoch()
        attempt.wait(chance.uniform(0, 15))
        sent = time.monotonic()
        to = chance.choice([[0, 1], [0], [1]])
        attempt.signal(signal.SIGTERM, to)
        attempt.wait(3 * END_SECONDS)
        late = time.monotonic() - sent
        found["slowest"] = max(found["slowest"], late)
        found["sent"][" and ".join(map(str, to))] += 1
        found["left"] += [f"attempt {restarts}: {len(left)} processes" for left in [attempt.groups_left()] if left]
        codes = [rank.wait() for rank in attempt.ranks]
        said = [log.read_text(errors="replace") for log in attempt.logs]
        found["resumed"] += "Resume  from" in said[0]
        # The default action ends a process that has not begun to receive signals, or has all but ended.
        if not set(codes) <= {143, -15} or any("Traceback" in text for text in said) or late > END_SECONDS:
            found["wrong"].append(f"attempt {restarts}: codes {codes}, {late:.1f} s: {attempt.last_lines()}")
        found["files"] = list_files(folder)
        restarts += 1
        print(f"{restarts} attempts, to {to}: {late:.1f} s, {codes}", file=sys.stderr, flush=True)
    return found


def list_files(folder: Path) -> Counter[str]:
    """The files that a run has and keeps, by kind; a `Counter` of what is below the folder."""
    kinds: Counter[str] = Counter()
    for path in folder.rglob("*"):
        place = path.relative_to(folder).parts
        if path.is_file() and place[0] in ("logs", "tmp", "cache"):
            name = "unfinished" if path.name.startswith(".") and not path.name.endswith(".lock") else path.suffix
            kinds[f"{place[0]}: {'events' if 'tfevents' in path.name else name}"] += 1
    kinds["/dev/shm"] = len(list(Path("/dev/shm").iterdir()))
    kinds["runs"] = len([*folder.glob("logs/preempted/version_*")])
    return kinds


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long in all")
    seconds = 60 * parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_photos(folder / "photos")
        rows, epochs = watch_one(folder, seconds / 2)
        print(f"One fit, {epochs} epochs in {seconds / 120:.0f} minutes, medians of quarters:\n")
        print("| | first | second | third | last | most |\n|---|---|---|---|---|---|", *rows, sep="\n", flush=True)
        before = list_files(folder)
        found = preempt(folder, seconds / 2, random.Random(0))
        sent = ", ".join(f"{count} to rank {ranks}" for ranks, count in sorted(found["sent"].items()))
        print(
            f"\nSIGTERM: {sent}; slowest end {found['slowest']:.1f} s; {found['resumed']} attempts resumed a checkpoint"
        )
        print("\n| files | after one fit | after all |\n|---|---|---|")
        for kind in sorted({*before, *found["files"]}):
            print(f"| {kind} | {before[kind]} | {found['files'][kind]} |")
        print("\nFaults:", *(found["wrong"] + found["left"] or ["none"]), sep="\n")


if __name__ == "__main__":
    main()
