"""Runs that begin at the same moment, each of `RUNS` in a process of its own."""

import os
import sys
import time
import traceback
from pathlib import Path

import forked
import torch

from lit_ft.cli import main as lit_ft_main

CSV = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "csv")
KINDS = {
    "logs/run": (),
    "csv/run": CSV,
    "logs/none": ("--trainer.logger", "false", "--name", "none"),
}
"""Where the runs of a kind go, and their options."""
RUNS = [kind for kind in KINDS for _ in range(2)]
"""The kind of each run; its number is its seed."""


def launch(folder):
    """Starts all runs in a folder, from a process that has no threads and so can fork."""
    if forked.wait(forked.start(main, folder, out=folder / "main.log"), seconds=600) != [0]:
        logs = [path.read_text()[-2000:] for path in sorted(folder.glob("*.log"))]
        raise RuntimeError("\n".join(logs))


def start(number):
    """Begins a run in a process of its own when all are ready, and returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        log = os.open(f"{number}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        args = ["fit", "--trainer.max_epochs", "1", "--unfreeze", "null", "--model.weights", "null"]
        args += ["--report", "null", "--trainer.limit_val_batches", "1", "--trainer.limit_train_batches", "1"]
        args += ["--seed_everything", str(number), *KINDS[RUNS[number]]]
        Path(f"{number}.ready").touch()
        while len(list(Path().glob("*.ready"))) < len(RUNS):
            time.sleep(0.001)
        code = lit_ft_main(args)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def main(folder):
    """Starts all runs, and gives 1 if one of them fails."""
    torch.set_num_threads(1)
    os.chdir(folder)
    children = [start(number) for number in range(len(RUNS))]
    codes = [os.waitpid(child, 0)[1] for child in children]
    return int(any(codes))
