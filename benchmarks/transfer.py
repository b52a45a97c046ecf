"""Test accuracy and log-loss on flowers5 after transfer: the recipes of lit_ft, a tuned regression by hand, and fastai.

    LIT_FT_DATA=FOLDER python benchmarks/transfer.py [--folds 5] [--networks squeezenet1_1 tf_efficientnet_lite0]
        [--tasks ...] [--contestants ...] [--fastai PYTHON]

All 700 photos are split into five folds; one is tested on, and the others are trained on: all of them, 5, 20 or 100 a
class, all with a fifth of the labels wrong, or 100 of one class down to 5 of another. Each contestant gets the training
photos alone, and holds out of them what it needs. FOLDER has ``flowers5`` and ``weights``. PYTHON has fastai; without
it an environment of its own is made. What each turn gave is appended to a file of JSON lines, so that it can be done in
several goes. Hours; one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers.contest import HERE, PLACE, commit, hold, python, weights_of
from peers.table import Turn
from sklearn.model_selection import StratifiedKFold

NETWORKS = {
    "squeezenet1_1": ("squeezenet1_1", "torchvision_squeezenet1_1.pth"),
    "tf_efficientnet_lite0": ("timm/tf_efficientnet_lite0", "timm_tf_efficientnet_lite0.safetensors"),
}
TASKS = ("all", "5 a class", "20 a class", "100 a class", "20% wrong labels", "1:20 imbalance")
RECIPES = {
    "image_folder": ("image_folder.yaml", []),
    "image_folder, linear probe alone": ("image_folder.yaml", ["--unfreeze.strategy=linear_probe"]),
    "image_folder_gradual": ("image_folder_gradual.yaml", []),
}
BY_HAND, FASTAI = "tuned regression by hand", "fastai fine_tune"
CONTESTANTS = (*RECIPES, BY_HAND, FASTAI)


def choose(classes: np.ndarray, task: str, fold: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows to train on, their labels, and the rows to test on."""
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(classes, classes))
    train, test = folds[fold]
    random = np.random.default_rng(fold)
    train = random.permutation(train)
    num_classes = int(classes.max()) + 1
    most = {k: len(train) for k in range(num_classes)}
    if task.endswith(" a class"):
        most = dict.fromkeys(range(num_classes), int(task.split()[0]))
    elif task == "1:20 imbalance":
        sizes = np.geomspace(100, 5, num_classes).round().astype(int)
        most = dict(enumerate(random.permutation(sizes).tolist()))
    train = np.concatenate([train[classes[train] == k][:count] for k, count in most.items()])
    labels = classes[train].copy()
    if task == "20% wrong labels":
        wrong = random.random(len(labels)) < 0.2
        labels[wrong] = (labels[wrong] + random.integers(1, num_classes, int(wrong.sum()))) % num_classes
    return train, labels, test


def write(folder: Path, photos: list[Path], names: list[str], turn: Turn) -> None:
    """The photos of a turn as folders of links, those for test also as ``val``, which fastai reports on."""
    classes = np.array([names.index(photo.parent.name) for photo in photos])
    train, labels, test = choose(classes, turn["task"], turn["fold"])
    for split, rows, targets in (("train", train, labels), ("test", test, classes[test]), ("val", test, classes[test])):
        for row, target in zip(rows.tolist(), targets.tolist(), strict=True):
            link = folder / split / names[target] / f"{row}{photos[row].suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photos[row].resolve())


def by_lit_ft(turn: Turn, folder: Path, weights: Path) -> dict[str, Any]:
    """A recipe, with photos for validation held out of those to train on."""
    (folder / "val").rename(folder / "unused")
    recipe, options = RECIPES[turn["contestant"]]
    model = [f"--model.backbone={NETWORKS[turn['network']][0]}", f"--model.weights={weights}"]
    place = [f"--data.root={folder}", f"--trainer.default_root_dir={folder / 'runs'}", "--name=run"]
    seeds = [f"--data.split_seed={turn['fold']}", f"--seed_everything={turn['fold']}"]
    quiet = ["--report=null", "--predictions=null", "--data.num_workers=0", "--trainer.enable_progress_bar=false"]
    config = ["--config", str(HERE.parents[1] / "configs" / recipe)]
    command = [sys.executable, "-m", "lit_ft", "finetune", *config, *model, *place, *seeds, *quiet, *options]
    told = spend(command, {"LIT_FT_CACHE": str(folder / "cache")})
    metrics = json.loads((folder / "runs" / "run" / "version_0" / "metrics.json").read_text("utf-8"))
    chosen = [line for line in told.splitlines() if line.startswith("Chosen")]
    return {"accuracy": metrics["test"]["test/acc"], "loss": metrics["test"]["test/loss"], "chosen": chosen}


def by_script(script: str) -> Callable[[Turn, Path, Path], dict[str, Any]]:
    """A contestant of ``peers``."""

    def take(turn: Turn, folder: Path, weights: Path) -> dict[str, Any]:
        given = {"network": turn["network"], "weights": str(weights), "data": str(folder), "seed": turn["fold"]}
        home = {"TORCH_HOME": str(weights_of("squeezenet1_1").parents[2])}
        told = spend([turn["python"], str(HERE / script), json.dumps(given)], home)
        found: dict[str, Any] = json.loads(told.strip().splitlines()[-1])
        return found

    return take


def spend(command: list[str], variables: dict[str, str]) -> str:
    """The output of a command, which has one thread."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LIT_FT_")}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def take(asked: Turn, data: Path, interpreter: str) -> dict[str, Any]:
    """Lets a contestant take a turn."""
    photos = sorted(path for path in (data / "flowers5").glob("*/*/*") if path.is_file())
    names = sorted({photo.parent.name for photo in photos})
    takes = {BY_HAND: by_script("with_regression.py"), FASTAI: by_script("with_fine_tune.py")}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), photos, names, asked)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        turn = {**asked, "python": interpreter}
        weights = (data / "weights" / NETWORKS[asked["network"]][1]).resolve()
        found = takes.get(asked["contestant"], by_lit_ft)(turn, Path(folder), weights)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{asked}: {found['accuracy']:.1%}, log-loss {found['loss']:.3f}, {cpu:.0f} s", file=sys.stderr, flush=True)
    return {**found, "cpu_seconds": cpu, "at": time.strftime("%Y-%m-%d %H:%M")}


def row(turns: list[Turn]) -> str:
    """A contestant's line of a table: mean and range over the folds, and median seconds."""
    cells = []
    for key, form in (("accuracy", ".1%"), ("loss", ".2f")):
        values = [turn[key] for turn in turns]
        cells.append(f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
    return " | ".join([*cells, f"{statistics.median(turn['cpu_seconds'] for turn in turns):.0f}"])


def main() -> None:
    """Prints a table a network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folds", type=int, default=5, choices=range(1, 6))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--fastai", help="an interpreter with fastai")
    parser.add_argument("--results", type=Path, default=PLACE / "transfer.jsonl")
    args = parser.parse_args()
    data = Path(os.environ["LIT_FT_DATA"])
    interpreter = args.fastai or (str(python("torch")) if FASTAI in args.contestants else sys.executable)
    for network in args.networks:
        wanted = [
            {
                "network": network,
                "task": task,
                "fold": fold,
                "contestant": name,
                **({"commit": commit()} if name in RECIPES else {}),
            }
            for task in args.tasks
            for fold in range(args.folds)
            for name in args.contestants
            if name != FASTAI or network == "squeezenet1_1"  # it fetches those of timm itself
        ]
        held = hold(args.results, wanted, lambda asked: take(asked, data, interpreter))
        print(f"\n{network}\n\n| photos | contestant | test accuracy | log-loss | CPU seconds |\n|---|---|---|---|---|")
        for task in args.tasks:
            for name in args.contestants:
                turns = [turn for turn in held if (turn["task"], turn["contestant"]) == (task, name)]
                if turns:
                    print(f"| {task} | {name} | {row(turns)} |")


if __name__ == "__main__":
    main()
