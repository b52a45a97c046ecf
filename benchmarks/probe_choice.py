"""Whether the order of ``lit-ft probe`` is the order after fine-tuning, and what a probe takes.

    LIT_FT_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/probe_choice.py [rank] [time] [--splits 3]
        [--cifar FOLDER] [--letters FOLDER]

rank: eight backbones, of which three are pretrained here for minutes, on three sets of few images. Each is probed on
train and val, fine-tuned as configs/image_folder.yaml says, but for ten epochs of batches of 16, and tested on images
that neither has seen. time: two backbones on the 700 photos of flowers5, without cached features.

FOLDER has ``flowers5`` and ``weights``; --cifar names that of CIFAR-10, and --letters that of EMNIST letters. What each
turn gave is appended to a file of JSON lines, so that it can be done in several goes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from choice_sets import CIFAR, LETTERS, TARGETS, Sources, draw, read_flowers, write
from choice_table import order_tables
from peers.contest import PLACE, commit, hold
from peers.table import Turn, spread

import lit_ft
from lit_ft.cli import main as command
from lit_ft.runs import Run

RECIPE = Path(__file__).parent.parent / "configs" / "image_folder.yaml"


@dataclass(frozen=True)
class Candidate:
    """A backbone with weights.

    Args:
        network: Its name.
        weights: A file below ``weights`` in the data, or a tag; null where it is pretrained here.
        size: Side of the images it takes, where that is not the target's.
        stem: Its stem.
        on: The set that it is pretrained on here.
        epochs: For how long.
        lr: The learning rate.
    """

    network: str
    weights: str | None = None
    size: int | None = None
    stem: str = "own"
    on: str | None = None
    epochs: int = 0
    lr: float = 2e-3

    def model(self, weights: str | None, size: int | None) -> dict[str, Any]:
        """The options of the model."""
        return {"backbone": self.network, "weights": weights, "input": {"size": size}, "stem": self.stem}


CANDIDATES = {
    "SqueezeNet 1.1, ImageNet": Candidate("squeezenet1_1", "torchvision_squeezenet1_1.pth"),
    **{
        f"EfficientNet-Lite{n}, ImageNet": Candidate(
            f"timm/tf_efficientnet_lite{n}", f"timm_tf_efficientnet_lite{n}.safetensors"
        )
        for n in range(3)
    },
    "MNIST CNN, digits": Candidate("mnist_cnn", "MNIST", size=28),
    "MNIST CNN, letters": Candidate("mnist_cnn", size=28, on=LETTERS, epochs=2),
    "ResNet-18, CIFAR-10": Candidate("resnet18", size=32, on=CIFAR, epochs=3),
    "MobileNetV3-Small, CIFAR-10": Candidate("mobilenet_v3_small", size=32, stem="small", on=CIFAR, epochs=2),
}


def folder_of(root: Path, batch_size: int, augment: str) -> dict[str, Any]:
    """The options of the data."""
    given = {"root": str(root), "batch_size": batch_size, "augment": augment, "num_workers": 0}
    return {"class_path": "lit_ft.ImageFolderDataModule", "init_args": given}


def weights_of(name: str, sources: Sources) -> str:
    """The weights of a candidate: a tag, or a file, which is made where it is pretrained here."""
    one = CANDIDATES[name]
    if one.on is None:
        file = sources.data / "weights" / str(one.weights)
        return str(file) if file.is_file() else str(one.weights)
    made = PLACE / "choice" / f"{name.replace(', ', '_')}_{commit()}.ckpt"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            root, began = Path(folder, "images"), time.process_time()
            write(root, {label: images[:4000] for label, images in sources.read(one.on, pretraining=True)[0].items()})
            result = lit_ft.run(
                {"model": {**one.model(None, one.size), "lr": one.lr}, "data": folder_of(root, 128, "none")},
                optimizer="AdamW",
                lr_scheduler={"class_path": "WarmupCosine", "init_args": {"warmup_fraction": 0.2}},
                unfreeze={"strategy": "full"},
                trainer=_trainer(folder, one.epochs),
            )
            shutil.copy(str(result.last), made)
        accuracy, seconds = result.history[-1]["val/acc"], time.process_time() - began
        print(f"{name}: pretrained in {seconds:.0f} CPU s to {accuracy:.1%} validation", file=sys.stderr, flush=True)
    return str(made)


def _trainer(folder: str, epochs: int) -> dict[str, Any]:
    return {"max_epochs": epochs, "default_root_dir": folder, "accelerator": "cpu", "enable_progress_bar": False}


def rank(asked: Turn, sources: Sources) -> Turn:
    """Probes a backbone on a split, fine-tunes it, and tests its probe, the last epoch, and what is handed back."""
    one, target = CANDIDATES[asked["backbone"]], TARGETS[asked["target"]]
    model = one.model(weights_of(asked["backbone"], sources), one.size or target.size)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        root = Path(folder, "images")
        for part, classes in draw(*sources.read(asked["target"]), target, asked["split"]).items():
            write(root / part, classes)
        data, probed = folder_of(root, 16, target.augment), Path(folder, "probed")
        config = json.dumps({"model": model, "data": data, "trainer": {"accelerator": "cpu"}})
        if failed := command(["probe", "--config", config, "--stages", "last", "--folder", str(probed)]):
            raise SystemExit(failed)
        found = json.loads((probed / "probe.json").read_text("utf-8"))["backbones"][0]
        result = lit_ft.run(
            RECIPE, model=model, data=data, trainer=_trainer(folder, 10), seed_everything=asked["split"]
        )
        run = Run(Path(str(result.folder)))
        correct = {name: evaluate(run.checkpoint(name), root) for name in ("probe", "last", "best")}
    figures = {key: found[key] for key in ("score", "loss", "logme", "gflops")}
    seconds = time.process_time() - began
    print(*asked.values(), f"{seconds:.0f} CPU s", file=sys.stderr, flush=True)
    return {**figures, **correct, "cpu_seconds": seconds}


@torch.inference_mode()
def evaluate(checkpoint: Path, root: Path) -> str:
    """Whether the class of each test image is predicted: a text of zeros and ones."""
    model = lit_ft.FineTuneModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    photos = lit_ft.ImageFolderDataModule(str(root), num_workers=0, spec=model.input_spec)
    photos.setup("test")
    return "".join(
        str(int(right))
        for images, targets in photos.test_dataloader()
        for right in model(images).argmax(dim=1) == targets
    )


def take_time(asked: Turn, sources: Sources) -> Turn:
    """Probes two backbones on all photos of flowers5 in a process of its own, without cached features."""
    names = ("SqueezeNet 1.1, ImageNet", "EfficientNet-Lite0, ImageNet")
    backbones = ",".join(f"{CANDIDATES[name].network}={weights_of(name, sources)}" for name in names)
    with tempfile.TemporaryDirectory() as folder:
        root = write(Path(folder, "photos"), read_flowers(sources.data / "flowers5"))
        config = json.dumps({"model": {"backbone": "squeezenet1_1"}, "data": folder_of(root, 32, "none")})
        probe = ["-m", "lit_ft", "probe", "--config", config, "--backbones", backbones, "--folder", f"{folder}/probed"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, *probe, "--trainer.accelerator", "cpu"],
            env={**os.environ, "LIT_FT_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads(Path(folder, "probed", "probe.json").read_text("utf-8"))
    features = sum(one["feature_seconds"] for one in found["backbones"])
    solver = sum(one["solver_seconds"] for one in found["backbones"])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu_seconds": cpu, "features": features, "solver": solver, "all": found["seconds"]}


def time_table(turns: Sequence[Turn]) -> str:
    """What a probe takes; the share of the solver is of all the time."""
    columns: Mapping[str, list[float]] = {
        "CPU seconds": [turn["cpu_seconds"] for turn in turns],
        "wall seconds": [turn["wall"] for turn in turns],
        "features": [turn["features"] / turn["wall"] for turn in turns],
        "solver": [turn["solver"] / turn["wall"] for turn in turns],
        "labels and images": [(turn["all"] - turn["features"] - turn["solver"]) / turn["wall"] for turn in turns],
    }
    cells = [spread(values, ".1f" if "seconds" in name else ".0%") for name, values in columns.items()]
    return f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n| {' | '.join(cells)} |"


def main() -> None:
    """Prints the tables that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=["rank", "time"], default=["rank", "time"])
    parser.add_argument("--splits", type=int, default=3, help="of each target, and rounds of the time")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    data = Path(os.environ.get("LIT_FT_DATA", "data"))
    parser.add_argument("--cifar", type=Path, default=data, help="has cifar-10-batches-py")
    parser.add_argument("--letters", type=Path, default=data, help="has EMNIST/raw")
    parser.add_argument("--results", type=Path, default=PLACE / "choice.jsonl", help="JSON lines; made or added to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LIT_FT_CACHE"] = cache
        print_tables(args, Sources(data, args.cifar, args.letters))


def print_tables(args: argparse.Namespace, sources: Sources) -> None:
    """Measures what is missing, and prints the tables."""
    asked = {"commit": commit()}
    if "time" in args.tables:
        wanted = [{**asked, "round": number} for number in range(args.splits)]
        print(time_table(hold(args.results, wanted, lambda turn: take_time(turn, sources))), flush=True)
    if "rank" in args.tables:
        wanted = [
            {**asked, "target": target, "split": split, "backbone": name}
            for split in range(args.splits)
            for target in args.targets
            for name in CANDIDATES
        ]
        held = hold(args.results, wanted, lambda turn: rank(turn, sources))
        for target in args.targets:
            print(f"\n{target}\n\n{order_tables([turn for turn in held if turn['target'] == target])}")


if __name__ == "__main__":
    main()
