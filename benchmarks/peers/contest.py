"""Decides how a contest is held: environments, photos and weights are made, all take turns, a table is printed.

What each turn gave is appended to a file of JSON lines, of which the table is made, so that a contest can be held in
several goes: turns that the file has are not taken again. A new file, or a deleted one, begins anew.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.job import Job
from peers.table import Turn

HERE = Path(__file__).parent
PLACE = HERE.parent / ".environments"
MODELS = ("resnet18", "resnet50", "squeezenet1_1")
REQUIREMENTS = {
    "torch": (
        "torch==2.15.0",
        "torchvision==0.29.2",
        "scikit-learn==1.9.1",
        "lightning==2.6.6",
        "finetuning-scheduler==2.14.1",
        "timm==1.0.31",
        "fastai==2.8.12",
    ),
    "keras": ("keras==3.15.1", "tensorflow-cpu==2.21.0"),
}


@dataclass(frozen=True)
class Contestant:
    """Who takes part.

    Args:
        script: Its script.
        environment: A key of `REQUIREMENTS`, or none for that which lit_ft is installed in.
        models: What it can train.
        options: What its script is given beside the job.
        once: Whether it takes no epochs, and so only the probe of images that are not augmented.
    """

    script: str
    environment: str | None = "torch"
    models: tuple[str, ...] = MODELS
    options: tuple[str, ...] = ()
    once: bool = False


CONTESTANTS = {
    "lit_ft": Contestant("with_lit_ft.py", None, options=("--unfreeze.head_fit=trained",)),
    "lit_ft, no cache": Contestant(
        "with_lit_ft.py", None, options=("--unfreeze.head_fit=trained", "--feature_cache=null")
    ),
    "lit_ft, solved head": Contestant("with_lit_ft.py", None, options=("--unfreeze.head_fit=solved",), once=True),
    "the passes alone": Contestant("with_passes.py", None),
    "by hand": Contestant("with_loop.py"),
    "by hand, features once": Contestant("with_features.py", once=True),
    "Lightning": Contestant("with_lightning.py"),
    "finetuning-scheduler": Contestant("with_scheduler.py"),
    "fastai": Contestant("with_fastai.py"),
    "timm": Contestant("with_timm.py", models=("resnet18", "resnet50")),
    "Keras": Contestant("with_keras.py", "keras", models=("resnet50",)),
}


def parser(description: str | None, results: str) -> argparse.ArgumentParser:
    """The options of every contest."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    made.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    made.add_argument("--photos", type=int, default=100, help="of each class to train on; two fifths to validate")
    made.add_argument("--workers", type=int, default=0, help="processes that read photos")
    made.add_argument("--results", type=Path, default=PLACE / results, help="a file of JSON lines; made or added to")
    return made


def turns(args: argparse.Namespace, kinds: Iterable[dict[str, Any]], contestants: Iterable[str]) -> list[Turn]:
    """All turns of a contest, in their order.

    Args:
        args: Those of `parser`.
        kinds: What is done with each model: ``augment``, ``head_epochs``, ``full_epochs``, and perhaps ``options`` for
            the script.
        contestants: Who does it, if they can.
    """
    every = itertools.product(range(args.rounds), args.models, kinds)
    options = {"photos": args.photos, "workers": args.workers, "commit": commit()}
    return [
        {"round": number, "model": model, "weights": kind_of_weights(model), **kind, "contestant": name, **options}
        for number, model, kind in every
        for name in beginning_with(number, list(contestants))
        if model in CONTESTANTS[name].models
        and not (CONTESTANTS[name].once and (kind["augment"] or kind["full_epochs"]))
    ]


def beginning_with(number: int, names: list[str]) -> list[str]:
    """All of them in turn, another one first in each round, as who follows whom may matter."""
    first = number % len(names)
    return names[first:] + names[:first]


@functools.cache
def commit() -> str:
    """That of this checkout, and a hash of what was changed since, in lit_ft, versions of peers, or scripts."""
    name = run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]).strip()
    changes = run(["git", "-C", str(HERE), "diff", "HEAD"])
    return f"{name}+{hashlib.sha256(changes.encode()).hexdigest()[:7]}" if changes else name


def hold(results: Path, wanted: Iterable[Turn], measure: Callable[[Turn], Turn] | None = None) -> list[Turn]:
    """Lets contestants take the turns that a file of results has not, adds them to it, and gives all that were wanted.

    Args:
        results: The file.
        wanted: The turns, as `turns` makes them.
        measure: What takes a turn, and gives what was measured; `take` when not given.
    """
    taken = [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.is_file() else []
    held = []
    for asked in wanted:
        turn = next((turn for turn in taken if asked.items() <= turn.items()), None)
        if turn is None:
            turn = {**asked, **(measure or take)(asked)}
            results.parent.mkdir(parents=True, exist_ok=True)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(turn) + "\n")
        held.append(turn)
    return held


def take(asked: Turn) -> Turn:
    """Lets a contestant take a turn."""
    one = CONTESTANTS[asked["contestant"]]
    interpreter = python(one.environment)
    weights = weights_of(asked["model"])
    label = f"round {asked['round'] + 1}, {asked['model']}, {asked['contestant']}"
    job = Job(
        model=asked["model"],
        weights=str(weights),
        data=str(photos(asked["photos"])),
        augment=asked["augment"],
        head_epochs=asked["head_epochs"],
        full_epochs=asked["full_epochs"],
        workers=asked["workers"],
        seed=asked["round"],
        spawned=time.time(),
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIT_FT_")}
    environment |= {"OMP_NUM_THREADS": "1", "TORCH_HOME": str(weights.parents[2]), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [str(interpreter), str(HERE / one.script), job.written(), *one.options, *asked.get("options", ())]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=on_few_cores(asked["workers"])
    )
    told = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or not told:
        raise SystemExit(f"{label} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    turn: Turn = {**json.loads(told[-1]), "at": time.strftime("%Y-%m-%d %H:%M")}
    print(
        f"{label}: {turn['seconds']:.1f} s, {turn['peak_mb']:,.0f} MB, {turn['accuracies'][-1]:.1%}",
        file=sys.stderr,
        flush=True,
    )
    return turn


def on_few_cores(workers: int) -> Callable[[], None] | None:
    """Holds a contestant to a core, and one more a worker, where the system can: some would read photos on others."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))[: 1 + workers]
    return lambda: os.sched_setaffinity(0, cores)


@functools.cache
def python(environment: str | None) -> Path:
    """The interpreter of an environment, which is made where it is not there or of other versions."""
    if environment is None:
        return Path(sys.executable)
    place = PLACE / environment
    interpreter, list_of_installed = place / "bin" / "python", place / "requirements.txt"
    required = "\n".join(REQUIREMENTS[environment])
    if not list_of_installed.is_file() or list_of_installed.read_text() != required:
        print(f"installing {', '.join(REQUIREMENTS[environment])}", file=sys.stderr, flush=True)
        run([sys.executable, "-m", "venv", str(place)])
        run([str(interpreter), "-m", "pip", "install", "--quiet", *REQUIREMENTS[environment]])
        list_of_installed.write_text(required)
    return interpreter


def kind_of_weights(model: str) -> str:
    """Whether the published ones are at hand."""
    return "published" if given_weights(model).is_file() else "random"


def given_weights(model: str) -> Path:
    """Where a model's published weights would be."""
    return Path(os.environ.get("LIT_FT_DATA", "")) / "weights" / f"torchvision_{model}.pth"


@functools.cache
def weights_of(model: str) -> Path:
    """The file of a model's weights: those in LIT_FT_DATA, or random ones."""
    kind = kind_of_weights(model)
    given = str(given_weights(model)) if kind == "published" else ""
    return Path(run([sys.executable, str(HERE / "weights.py"), model, str(PLACE / "weights" / kind), given]).strip())


def run(command: Sequence[str]) -> str:
    """What a command prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@functools.cache
def photos(count: int) -> Path:
    """A folder of links to the first photos of each class of flowers5: so many to train on, and two fifths as many."""
    source = Path(os.environ.get("LIT_FT_DATA", "")) / "flowers5"
    if not source.is_dir():
        raise SystemExit("LIT_FT_DATA: a folder with flowers5/train and flowers5/val is needed")
    place = PLACE / f"photos-{count}"
    for split, number in (("train", count), ("val", count * 2 // 5)):
        for label in sorted((source / split).iterdir()):
            (place / split / label.name).mkdir(parents=True, exist_ok=True)
            for photo in sorted(label.glob("*.jpg"))[:number]:
                link = place / split / label.name / photo.name
                if not link.is_symlink():
                    link.symlink_to(photo.resolve())
    return place
