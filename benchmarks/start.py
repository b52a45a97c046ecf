"""Starts each command of lit-ft in a process of its own, up to the first step of a training, and counts the seconds.

Claim: ``lit-ft --help`` costs what Python itself costs, and the first step of a training comes soon after Lightning is
loaded. Beside it stands a script that loads the same libraries and makes the same step by hand: the limit.

Run: python benchmarks/start.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from peers.table import spread
from PIL import Image

HERE = Path(__file__).resolve().parent
BY_HAND = """
import os
import lightning, numpy, sklearn.model_selection, torch, torchvision
from sklearn.datasets import load_digits
from torch import nn
from torchvision.transforms.v2 import functional as F

digits = load_digits()
ink = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
images = F.pad(F.resize(ink, [20, 20], antialias=True).clamp(0, 255), [4, 4, 4, 4]) / 255
rows, _ = sklearn.model_selection.train_test_split(numpy.arange(1797), train_size=10, stratify=digits.target)
conv, dense = nn.Conv2d(1, 32, 3), nn.Linear(32 * 13 * 13, 128)
net = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense, nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.AdamW(net[-1].parameters(), 3e-3)
nn.functional.cross_entropy(net(images[rows]), torch.from_numpy(digits.target[rows])).backward()
optimizer.step()
os._exit(0)
"""


class EndAtFirstStep(Callback):
    """Ends the process when the first batch was trained on."""

    def on_train_batch_end(self, *args: Any) -> None:
        """Ends it, without what comes at the end of a run."""
        os._exit(0)


def contestants(folder: Path) -> dict[str, tuple[list[str], str | None]]:
    """The arguments for Python of each, and the name of its limit."""
    command, hand = ["-m", "lit_ft"], "the quickstart's step by hand"
    ends = ["--trainer.callbacks+", "start.EndAtFirstStep", "--trainer.default_root_dir", str(folder)]
    photos = Path(os.environ.get("LIT_FT_DATA", "data"))
    weights = photos / "weights" / "torchvision_squeezenet1_1.pth"
    network = ["--model.backbone", "squeezenet1_1", "--model.weights", str(weights)]
    fit = [*command, "fit", "--config"]
    found: dict[str, tuple[list[str], str | None]] = {
        "python": (["-c", "pass"], None),
        "import lit_ft": (["-c", "import lit_ft"], "python"),
        "lit-ft --help": ([*command, "--help"], "python"),
        "lit-ft recipes": ([*command, "recipes"], "python"),
        "import torch": (["-c", "import torch"], None),
        "import torchvision": (["-c", "import torchvision"], None),
        "lit-ft models mnist_cnn": ([*command, "models", "mnist_cnn"], "import torchvision"),
        "lit-ft describe resnet18": ([*command, "describe", "resnet18"], "import torchvision"),
        "import lightning": (["-c", "import lightning"], None),
        "lit-ft finetune --help": ([*command, "finetune", "--help"], "import lightning"),
        "lit-ft probe --help": ([*command, "probe", "--help"], "import lightning"),
        "lit-ft predict, one image": ([*command, "predict", *make_prediction(folder)], "import torchvision"),
        hand: (["-c", BY_HAND], None),
        "lit-ft fit, quickstart, first step": ([*fit, "quickstart", *ends], hand),
    }
    if weights.is_file():
        args = [*fit, "image_folder_gradual", "--data.root", str(photos / "flowers5"), *network, *ends]
        # What the feature cache does before the first step is the work of the epochs to come.
        found["lit-ft fit, SqueezeNet on photos, first step"] = ([*args, "--feature_cache", "null"], "import lightning")
    return found


def make_prediction(folder: Path) -> list[str]:
    """Trains a small network for an epoch, and gives the arguments that predict an image with it."""
    image, options = folder / "image.png", ["--trainer.max_epochs", "1", "--unfreeze.strategy", "full"]
    Image.new("L", (28, 28)).save(image)
    here = ["--trainer.default_root_dir", str(folder), "--name", "trained"]
    start(["-m", "lit_ft", "fit", "--config", "quickstart", *options, *here])
    return [str(folder / "trained" / "version_0"), str(image), "--out", str(folder / "out.csv"), "--overwrite"]


def start(args: list[str]) -> tuple[float, float]:
    """Seconds until the process has ended, and seconds of CPU time that it took with its children."""
    here = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # for `EndAtFirstStep`
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the round that is not counted compiles what pip would have
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *args], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"failed: {args}")
    return seconds, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Lets the contestants take turns, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each starts, after one that is not counted")
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help="only these, and what they are compared with")
    given = parser.parse_args()
    rounds = given.rounds
    with tempfile.TemporaryDirectory() as folder:
        entries = contestants(Path(folder))
        if given.contestants:
            wanted = {*given.contestants, *(entries[name][1] for name in given.contestants)}
            entries = {name: entry for name, entry in entries.items() if name in wanted}
        taken = [{name: start(args) for name, (args, _) in entries.items()} for _ in range(rounds + 1)][1:]
    print("| | seconds | CPU seconds | ratio of CPU seconds |\n|---|---|---|---|")
    for name, (_, limit) in entries.items():
        seconds, cpu = ([turn[name][i] for turn in taken] for i in (0, 1))
        ratio = f"{spread([turn[name][1] / turn[limit][1] for turn in taken], '.2f')} of {limit}" if limit else ""
        print(f"| {name} | {spread(seconds, '.2f')} | {spread(cpu, '.2f')} | {ratio} |")


if __name__ == "__main__":
    main()
