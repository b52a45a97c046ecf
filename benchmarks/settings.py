"""What trains, and how images are augmented: settings of the recipe image_folder with 5 photos a class, and on shifts.

    LIT_FT_DATA=FOLDER OMP_NUM_THREADS=1 python benchmarks/settings.py [--draws 3] [--cifar FOLDER] [--letters FOLDER]

Sets of 5 images a class: photos of flowers5, CIFAR-10, letters. Sets of 20 a class: flowers5 as it is not photographed,
which is grey, with its hues turned, turned by any angle, or blurred under noise. Images are drawn from those for
training alone, and each draw has images of its own to train on. The recipe holds out of them what it chooses by, and
what it hands back, after its refit, is compared with the linear probe of the same draw on other images.

FOLDER has ``flowers5`` and ``weights``; --cifar names that of CIFAR-10, and --letters that of EMNIST letters. What each
turn gave is appended to a file of JSON lines, so that it can be done in several goes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from choice_sets import CIFAR, FLOWERS, LETTERS, Sources, Target, draw, write
from peers.contest import PLACE, commit, hold
from peers.table import Turn
from PIL import Image, ImageFilter, ImageOps
from probe_choice import RECIPE

import lit_ft

FEW = {FLOWERS: Target(4, 1, 50, 224, "trivial"), CIFAR: Target(4, 1, 50, 96, "trivial")}
FEW[LETTERS] = Target(4, 1, 30, 64, "trivial")
SHIFTS = ("grey", "hues turned", "turned", "blurred under noise")
SHIFTED = Target(16, 4, 50, 224, "trivial")
PROBE = "linear probe"
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    PROBE: ({"strategy": "linear_probe"}, {}),
    "last stages, trivial": ({}, {}),
    "last stages, basic": ({}, {"augment": "basic"}),
    "all stages, trivial": ({"strategy": "lp_ft"}, {}),
}
"""The options of unfreezing and data that differ from the recipe's."""


def shift(photo: Image.Image, kind: str, random: np.random.Generator) -> Image.Image:
    """A photo as a camera or a hand that training never saw would give it."""
    if kind == "grey":
        return ImageOps.grayscale(photo)
    if kind == "hues turned":
        hue, *others = photo.convert("HSV").split()
        return Image.merge("HSV", (hue.point([(v + 128) % 256 for v in range(256)]), *others)).convert("RGB")
    if kind == "turned":
        return photo.rotate(float(random.uniform(0, 360)), Image.Resampling.BILINEAR)
    pixels = np.asarray(photo.filter(ImageFilter.GaussianBlur(max(photo.size) / 150)), np.float32)
    noisy = pixels + random.normal(0, 25, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make(root: Path, name: str, number: int, sources: Sources) -> int:
    """Writes the images of a draw, and returns the side in pixels that they are trained with."""
    kind = name if name in SHIFTS else None
    target, given = FEW.get(name, SHIFTED), FLOWERS if kind else name
    parts = draw(sources.read(given)[0], None, target, number)
    for part, split in (("train", "train"), ("val", "train"), ("test", "test")):
        write(root / part, parts[part])
        if kind:
            random = np.random.default_rng(number)
            for link in sorted((root / part).glob("*/*")):
                photo = shift(Image.open(link).convert("RGB"), kind, random)
                link.unlink()
                photo.save(link, quality=95)
        if split != part:  # the recipe holds out its own
            for image in sorted((root / part).glob("*/*")):
                image.rename(root / split / image.parent.name / f"{part}_{image.name}")
                if not any(image.parent.iterdir()):
                    image.parent.rmdir()
            (root / part).rmdir()
    return target.size


def take(asked: Turn, sources: Sources) -> dict[str, Any]:
    """Trains with a setting on a draw, and measures on its other images."""
    unfreeze, data = SETTINGS[asked["setting"]]
    weights = sources.data / "weights" / "torchvision_squeezenet1_1.pth"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        size = make(Path(folder, "images"), asked["set"], asked["draw"], sources)
        os.environ["LIT_FT_CACHE"] = str(Path(folder, "cache"))
        began = time.process_time()
        result = lit_ft.finetune(
            str(Path(folder, "images")),
            RECIPE,
            model={"backbone": "squeezenet1_1", "weights": str(weights), "input": {"size": size}},
            data={"num_workers": 0, "split_seed": asked["draw"], **data},
            unfreeze=unfreeze,
            trainer={"default_root_dir": folder, "accelerator": "cpu", "enable_progress_bar": False},
            seed_everything=asked["draw"],
            report=None,
            predictions=None,
        )
        seconds = time.process_time() - began
    found = {"accuracy": result.metrics["test/acc"], "loss": result.metrics["test/loss"], "cpu_seconds": seconds}
    print(*asked.values(), *(f"{value:.3f}" for value in found.values()), file=sys.stderr, flush=True)
    return found


def tables(held: Sequence[Turn]) -> str:
    """Each setting against the linear probe of the same draws: a table of the sets, and one of their means."""
    of = {(turn["set"], turn["draw"], turn["setting"]): turn for turn in held}
    sets, names = list(dict.fromkeys(turn["set"] for turn in held)), [name for name in SETTINGS if name != PROBE]
    lines = [f"| set | {PROBE} | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    mean: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for one in sets:
        draws = sorted({turn["draw"] for turn in held if turn["set"] == one})
        probes = [of[one, number, PROBE] for number in draws]
        cells = [
            f"{statistics.mean(t['accuracy'] for t in probes):.1%}, {statistics.mean(t['loss'] for t in probes):.2f}"
        ]
        for name in names:
            turns = [of[one, number, name] for number in draws]
            points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(turns, probes, strict=True)]
            losses = [a["loss"] - b["loss"] for a, b in zip(turns, probes, strict=True)]
            mean[name] += list(zip(points, losses, (turn["cpu_seconds"] for turn in turns), strict=True))
            cells.append(
                f"{statistics.mean(points):+.1f} ({min(points):+.1f} to {max(points):+.1f}), "
                f"{statistics.mean(losses):+.2f} ({min(losses):+.2f} to {max(losses):+.2f})"
            )
        lines.append(f"| {one} | " + " | ".join(cells) + " |")
    cells = [
        f"{statistics.mean(p for p, _, _ in rows):+.1f}, {statistics.mean(loss for _, loss, _ in rows):+.3f}, "
        f"{statistics.median(seconds for *_, seconds in rows):.0f} s"
        for rows in mean.values()
    ]
    return "\n".join([*lines, "| all, and CPU seconds | | " + " | ".join(cells) + " |"])


def main() -> None:
    """Takes the turns that are missing, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = Path(os.environ["LIT_FT_DATA"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=[*FEW, *SHIFTS], default=[*FEW, *SHIFTS])
    parser.add_argument("--cifar", type=Path, default=data, help="has cifar-10-batches-py")
    parser.add_argument("--letters", type=Path, default=data, help="has EMNIST/raw")
    parser.add_argument("--results", type=Path, default=PLACE / "settings.jsonl", help="JSON lines; made or added to")
    args = parser.parse_args()
    sources = Sources(data, args.cifar, args.letters)
    wanted = [
        {"set": name, "draw": number, "setting": setting, "commit": commit()}
        for name in args.sets
        for number in range(args.draws)
        for setting in SETTINGS
    ]
    print(tables(hold(args.results, wanted, lambda asked: take(asked, sources))))


if __name__ == "__main__":
    main()
