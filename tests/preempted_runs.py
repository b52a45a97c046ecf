"""Runs of two processes that signals end at random moments, and that their launcher starts again."""

import faulthandler
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import forked
import torch
from lightning.pytorch.utilities import rank_zero_only
from small_runs import differences

from lit_ft.cli import main as lit_ft_main
from lit_ft.runs import Run
from lit_ft.training.history import read_history

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ARGS = ["--config", str(QUICKSTART), "--model.head.dropout", "0.5", "--trainer.accelerator", "cpu"]
ARGS += ["--unfreeze.head_epochs", "2", "--unfreeze.epochs_per_stage", "2", "--trainer.max_epochs", "7"]
MOST_SECONDS = 10  # from a signal to the end of all processes


def launch(folder, signals, options=()):
    """Ends runs by so many signals, and returns what was found; in a process that has no threads, and so can fork."""
    started = forked.start(main, folder, signals, list(options), out=folder / "main.log", SLURM_JOB_ID="7")
    if forked.wait(started, seconds=3000) != [0]:
        raise RuntimeError((folder / "main.log").read_text()[-3000:])
    return json.loads((folder / "found.json").read_text())


def start_rank(folder, options, rank, port, restarts):
    """Starts a process of a run, as torchrun does: its id."""
    if (pid := os.fork()) != 0:
        return pid
    code = 70
    try:
        log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "mine",
            "TORCHELASTIC_RESTART_COUNT": str(restarts), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        torch.set_num_threads(1)
        rank_zero_only.rank = rank  # which Lightning reads from the environment as it is imported
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
        faulthandler.register(signal.SIGUSR2)  # where a process is that takes long to end
        code = lit_ft_main(["finetune", *ARGS, *options])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def attempt(folder, options, restarts, chance, most):
    """Starts a run, or goes on with it, and sends a signal at a random moment; what was sent, and how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start_rank(folder, options, rank, port, restarts) for rank in range(2)]
    begun, codes, sent, ended, asked = time.monotonic(), [None, None], None, None, 0
    moment = chance.uniform(0, most) if most else float("inf")
    while None in codes:
        for rank, pid in enumerate(ranks):
            if codes[rank] is None and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(found[1])
        now = time.monotonic() - begun
        if sent is None and now >= moment and codes == [None, None]:
            sent = {"signal": chance.choice(SIGNALS).name, "to": chance.choice([[0, 1], [0, 1], [0], [1]]), "at": now}
            for rank in sent["to"]:
                os.kill(ranks[rank], signal.Signals[sent["signal"]])
        if ended is None and any(codes):  # as torchrun does, which asks ten times a second
            ended = now
            for rank, pid in enumerate(ranks):
                if codes[rank] is None:
                    os.kill(pid, signal.SIGTERM)
        late = 0.0 if sent is None else now - sent["at"]
        asks = (late > MOST_SECONDS / 2) + (late > 3 * MOST_SECONDS)
        if asks > asked:  # first where they are, and then no more
            asked = asks
            for rank, pid in enumerate(ranks):
                if codes[rank] is None:
                    os.kill(pid, signal.SIGUSR2 if asks == 1 else signal.SIGKILL)
        time.sleep(0.01)
    seconds = None if sent is None else time.monotonic() - begun - sent["at"]
    said = [(folder / f"rank{rank}.log").read_text() for rank in range(2)]
    return {"sent": sent, "codes": codes, "seconds": seconds, "said": said}


def faults(folder, found):
    """What is wrong with the end of an attempt."""
    if found["codes"] == [0, 0]:
        return []
    # SIGTERM of the launcher can come when a process has all but ended.
    codes = [143 if code == -signal.SIGTERM else code for code in found["codes"]]
    lines = [text.splitlines()[-1:] for text in found["said"]]
    wrong = ["a traceback"] if any("Traceback" in text for text in found["said"]) else []
    if found["sent"] is None or not set(codes) <= {128 + number for number in SIGNALS} | {0, 2}:
        wrong.append("another exit code")
    if found["seconds"] is not None and found["seconds"] > MOST_SECONDS:
        wrong.append("too late")
    if not any("lit-ft: " in line and "interrupted" in line for rank in lines for line in rank):
        wrong.append("no line that it was interrupted")
    if len(list(folder.glob("logs/*/*"))) > 1:
        wrong.append("another folder")
    ends = [text[-1500:] for text in found["said"]]
    return [f"{fault}: {json.dumps({**found, 'said': ends})}" for fault in wrong]


def end_of(run):
    """What a run came to."""
    best, last = (torch.load(run.checkpoint(name), weights_only=True) for name in ("best", "last"))
    kept = {name: last[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    scores = [state["best_model_score"] for state in last["callbacks"].values() if state.get("best_model_score")]
    metrics = {split: json.loads(run.metrics.read_text())[split] for split in ("val", "test")}
    kept |= {"best": best["state_dict"], "scores": scores, "metrics": metrics}
    return {**kept, "history": read_history(run.history)}


def only_run(folder):
    """The run in a folder that has one."""
    (found,) = folder.glob("logs/*/*")
    return Run(found)


def main(folder, signals, options):
    """Sends so many signals, starts each run again until it comes to its end, and compares the ends."""
    chance = random.Random(1)
    (folder / "whole").mkdir()
    begun = time.monotonic()
    first = attempt(folder / "whole", options, 0, chance, None)
    if first["codes"] != [0, 0]:
        raise RuntimeError("\n".join(first["said"]))
    most = time.monotonic() - begun
    whole, sent, wrong, saved = end_of(only_run(folder / "whole")), 0, [], 0
    while sent < signals:
        run = folder / f"run{len(list(folder.iterdir()))}"
        run.mkdir()
        for restarts in range(100):
            found = attempt(run, options, restarts, chance, most if sent < signals and restarts < 6 else None)
            wrong += faults(run, found)
            saved += "Resume  from" in found["said"][0]
            sent += found["sent"] is not None
            print(
                sent,
                found["sent"],
                found["codes"],
                found["seconds"],
                [text[-200:] for text in found["said"]],
                flush=True,
            )
            if (found["seconds"] or 0) > MOST_SECONDS / 2:
                print(*found["said"], sep="\n=======\n", flush=True)
            if found["codes"] == [0, 0]:
                break
        wrong += [f"{run.name}: {path}" for path in differences(whole, end_of(only_run(run)))]
    (folder / "found.json").write_text(json.dumps({"sent": sent, "wrong": wrong, "resumed": saved}))
