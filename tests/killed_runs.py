"""Runs that are killed, each in a process of its own: `launch` starts all of them."""

import io
import json
import logging
import math
import os
import random
import select
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import forked
import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_runs import FewDigits, differences, final_state, small_module, small_trainer

from lit_ft import AtomicCheckpointIO
from lit_ft.cli import main as lit_ft_main
from lit_ft.errors import UserError
from lit_ft.runs import find_checkpoint
from lit_ft.unfreezing.callback import GradualUnfreezing

SEED = 1
QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
save = torch.save


def launch(folder, kills, how):
    """Kills runs so many times, and returns what was found; in a process that has no threads, and so can fork."""
    if forked.wait(forked.start(main, folder, kills, how, out=folder / "main.log"), seconds=900) != [0]:
        raise RuntimeError((folder / "main.log").read_text()[-3000:])
    return json.loads((folder / "found.json").read_text())


class Teller:
    """Tells the process that kills this one what goes on, and waits to be killed within a write."""

    def __init__(self, pipe, kill_in_save=None, share=0.0):
        self.pipe = pipe
        self.kill_in_save = kill_in_save
        self.share = share
        self.saves = 0

    def tell(self, what):
        os.write(self.pipe, f"{what}\n".encode())

    def save(self, checkpoint, file, *args, **options):
        """In the place of `torch.save`: a share of the bytes of one checkpoint gets to the disk, and no more."""
        self.saves += 1
        if self.saves == self.kill_in_save:
            whole = io.BytesIO()
            save(checkpoint, whole)
            file.write(whole.getvalue()[: round(self.share * whole.tell())])
            file.flush()
            self.tell("writing")
            signal.pause()
        save(checkpoint, file, *args, **options)


class TellSaved(Callback):
    """Tells at the start of each step up to which one the checkpoints are written."""

    def __init__(self, teller):
        self.teller = teller

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.teller.tell(f"saved {trainer.global_step}")


def seed_and_checkpoint(folder, attempt):
    """Of a first start, and of those that go on from the newest checkpoint and must take up the first one's seed."""
    try:
        return 1000 + attempt, find_checkpoint(str(folder), "last")
    except UserError:
        return SEED, None


def train(folder, teller, attempt):
    """Three phases of three steps, with a checkpoint after each step and of the best epoch."""
    seed, path = seed_and_checkpoint(folder, attempt)
    L.seed_everything(seed)
    module = small_module(head={"hidden": [16], "dropout": 0.5}, optimizer="AdamW", lr=0.002)
    checkpoints = folder / "version_0" / "checkpoints"
    best = ModelCheckpoint(checkpoints, "best", monitor="val/loss", enable_version_counter=False)
    last = ModelCheckpoint(checkpoints, "last", every_n_train_steps=1, enable_version_counter=False)
    callbacks = [GradualUnfreezing("gradual"), TellSaved(teller), best, last]
    trainer = small_trainer(3, *callbacks, plugins=[AtomicCheckpointIO()])
    teller.tell("started")
    trainer.fit(module, datamodule=FewDigits(batch_size=7, augment="basic"), ckpt_path=path)
    found = torch.load(checkpoints / "best.ckpt", weights_only=True)
    return {**final_state(trainer, module), "best": [found["state_dict"], found["global_step"]]}


def train_by_command(folder, teller, attempt):
    """Three phases of ten steps by `lit-ft fit`, which saves the best and the last epoch."""
    _, path = seed_and_checkpoint(folder, attempt)
    args = ["fit", "--config", str(QUICKSTART), "--trainer.default_root_dir", str(folder.parent)]
    args += ["--name", folder.name, "--seed_everything", str(SEED), "--model.head.dropout", "0.5"]
    args += ["--unfreeze.head_epochs", "1", "--unfreeze.epochs_per_stage", "1", "--trainer.max_epochs", "3"]
    args += ["--ckpt_path", "last"] if path is not None else []
    teller.tell("started")
    if lit_ft_main(args) != 0:
        raise RuntimeError("lit-ft failed")
    # A run that was killed before its first checkpoint is started anew, in another folder.
    path = Path(find_checkpoint(str(folder), "last"))
    best, last = (torch.load(path.with_stem(name), weights_only=True) for name in ("best", "last"))
    final = {name: last[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}
    scores = [state.get("best_model_score") for state in last["callbacks"].values()]
    return {**final, "scores": scores, "steps": last["global_step"], "best": [best["state_dict"], best["global_step"]]}


def start(folder, how, attempt, **moment):
    """Starts a run, or goes on with it, in a process of its own: its id, and the pipe on which it tells."""
    hear, tell = os.pipe()
    if (pid := os.fork()) != 0:
        os.close(tell)
        return pid, hear
    code = 1
    try:
        with (folder / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        teller = Teller(tell, **moment)
        torch.save = teller.save
        run = {"python": train, "command": train_by_command}[how]
        save(run(folder, teller, attempt), folder / "final.pt")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def killed(folder, how, attempt, after_seconds=None, **moment):
    """Goes on with a run, and kills it within a write or so long after its start: what it told until then.

    It is ``None`` if the run came to its end.
    """
    pid, hear = start(folder, how, attempt, **moment)
    told, end = "", math.inf
    while "writing" not in told and (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([hear], [], [], None if left == math.inf else left)
        if ready and not (heard := os.read(hear, 4096)):
            break
        told += heard.decode() if ready else ""
        if "started" in told and after_seconds is not None and end == math.inf:
            end = time.monotonic() + after_seconds
    os.close(hear)
    os.kill(pid, signal.SIGKILL)  # to one that has ended this does nothing
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError((folder / "log").read_text()[-3000:])
    return None if os.WIFEXITED(status) else told


def check_checkpoints(folder, told):
    """No checkpoint is torn, and none that was written is lost."""
    found = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*/checkpoints/*.ckpt")}
    saved = max([0, *(int(line.split()[1]) for line in told.splitlines() if line.startswith("saved"))])
    assert saved == 0 or found["last"]["global_step"] >= saved, f"step {saved} was saved, and is lost"
    assert saved < 3 or "best" in found, "the best epoch is lost"


def run_to_its_end(folder, how, kills, chance, seconds):
    """Kills a run at most so many times until it comes to its end: for each kill, whether it fell within a write."""
    folder.mkdir()
    found, parts = [], set()
    for attempt in range(1000):
        moment, kills_left = {}, kills - len(found)
        if kills_left % 2:  # by turns, as else three kills could all be of one kind
            moment = {"kill_in_save": chance.randint(1, 5), "share": chance.choice([0.0, chance.random(), 1.0])}
        elif kills_left:
            moment = {"after_seconds": chance.uniform(0, seconds / 2)}
        if (told := killed(folder, how, attempt, **moment)) is None:
            return found
        check_checkpoints(folder, told)
        before, parts = parts, set(folder.glob("*/checkpoints/.*"))
        found.append(bool(parts - before))
    raise RuntimeError("the run does not come to its end")


def main(folder, kills, how):
    """Kills runs until there were so many kills, each run until it comes to its end, and compares these ends."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    chance = random.Random(SEED)
    begin = time.monotonic()
    run_to_its_end(folder / "whole", how, 0, chance, 0)
    seconds = time.monotonic() - begin
    whole = torch.load(folder / "whole" / "final.pt", weights_only=False)
    killed_in_write, wrong, runs = [], [], 0
    while len(killed_in_write) < kills:
        run = folder / f"run{(runs := runs + 1)}"
        killed_in_write += run_to_its_end(run, how, kills - len(killed_in_write), chance, seconds)
        wrong += [
            f"{run.name}: {path}" for path in differences(whole, torch.load(run / "final.pt", weights_only=False))
        ]
        left = Path(find_checkpoint(str(run), "last")).parent.glob(".*")
        wrong += [f"{run.name}: {path.name} is left" for path in left]
    found = {"kills": len(killed_in_write), "in_writes": sum(killed_in_write), "runs": runs, "steps": whole["steps"]}
    found |= {"best_step": whole["best"][1], "wrong": wrong, "seconds": round(time.monotonic() - begin)}
    (folder / "found.json").write_text(json.dumps(found))
