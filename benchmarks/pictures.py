"""What curves, pictures and tables for TensorBoard cost a run, in CPU seconds of its process and those that it starts.

Each recipe runs as it is, with ``--report null``, and without a logger as well, by turns. The page of a run,
``report.html``, is written by all three.

    LIT_FT_DATA=FOLDER python benchmarks/pictures.py [--rounds 5] [--recipes quickstart image_folder]

FOLDER has ``flowers5`` and ``weights/torchvision_squeezenet1_1.pth``, for ``image_folder`` without its refit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from peers.table import spread
from start import CONFIGS, start

DATA = Path(os.environ.get("LIT_FT_DATA", "data"))
RECIPES = {
    "quickstart": [],
    "image_folder": [
        "--data.root", str(DATA / "flowers5"), "--model.backbone", "squeezenet1_1",
        "--model.weights", str(DATA / "weights" / "torchvision_squeezenet1_1.pth"), "--refit", "false",
    ],
}  # fmt: skip
CONTESTANTS = {
    "as it is": [],
    "--report null": ["--report", "null"],
    "--report null --trainer.logger false": ["--report", "null", "--trainer.logger", "false"],
}


def main() -> None:
    """Lets the contestants take turns, and prints a table for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each runs")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    args = parser.parse_args()
    for recipe in args.recipes:
        command = ["-m", "lit_ft", "finetune", "--config", str(CONFIGS / f"{recipe}.yaml"), *RECIPES[recipe]]
        taken: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for _ in range(args.rounds):
            for name, options in CONTESTANTS.items():
                with tempfile.TemporaryDirectory() as folder:
                    taken[name].append(start([*command, *options, "--trainer.default_root_dir", folder])[1])
        print(f"| {recipe} | CPU seconds | cost of the first by this |\n|---|---|---|")
        for name, seconds in taken.items():
            more = [first / own - 1 for first, own in zip(taken["as it is"], seconds, strict=True)]
            print(f"| {name} | {spread(seconds, '.1f')} | {spread(more, '.1%')} |")


if __name__ == "__main__":
    main()
