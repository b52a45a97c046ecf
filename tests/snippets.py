"""Fenced blocks of the README and of the pages below docs/, and what stands in for the names in them."""

import re
import shlex
import shutil
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from band_files import numbers, save_set
from image_files import save_photo
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]

# Commands and code that are not run, by their beginning, and why not. Each must still be on some page.
_FINETUNE = "lit-ft finetune --config image_folder"
NOT_RUN = {
    "python3 -m venv": ".ci/run runs it, in an environment of its own",
    ".venv/bin/": ".ci/run runs it, in an environment of its own",
    "source .venv": "is for the shell",
    "pip install": "needs a package registry",
    "sphinx-build": ".ci/run runs it, in its environment",
    "sbatch": "needs SLURM; .ci/slurm runs the script",
    "tail -f": "shows what SLURM wrote",
    "lit-ft serve": "runs until it is ended; in a test of its own",
    "curl": "needs the server; in a test of its own",
    "import requests": "needs the server; in a test of its own",
    "lit-ft download": "needs a network; tests/cli/commands runs it without one",
    f"{_FINETUNE} --data StreamDataModule": "needs a bucket",
    f"{_FINETUNE} --data ImageDatasetDataModule --data.dataset Flowers102": "needs a network for the photos",
    f"{_FINETUNE} --data.root PHOTOS --trainer.logger WandbLogger": "needs wandb",
    f"{_FINETUNE} --data.root PHOTOS --trainer.logger MLFlowLogger": "needs mlflow",
    f"{_FINETUNE}_gradual --config ddp": "needs 8 GPUs",
    "lit-ft tune PHOTOS --tune space.yaml --tune.storage": "needs a database",
    "from fastai": "needs fastai",
    "import timm": "needs published weights",
    'import os\n\nos.environ["KERAS_BACKEND"]': "needs Keras",
    "import lightning as L\nimport torch\nfrom lightning.pytorch.callbacks import BackboneFinetuning": "needs weights",
    "class Flowers": "a part of a script that needs weights",
    "model = timm.create_model": "lit-ft export prints it; tests/export/test_library_weights.py runs such lines",
}

# What is made small where blocks are run: in recipes, commands and code.
SMALL = {
    "backbone: resnet50": "backbone: squeezenet1_1\n  weights: null",
    "trainer: {max_epochs: 6}": "trainer: {max_epochs: 2}",
    "trainer: {max_epochs: 12}": "trainer: {max_epochs: 7}",
    "trainer: {max_epochs: 40}": "trainer: {max_epochs: 12}",
    "max_epochs=40": "max_epochs=12",
    "lite0.safetensors": "null",
    "squeezenet1_1,timm/tf_efficientnet_lite0=WEIGHTS.safetensors": "squeezenet1_1=null,mnist_cnn=MNIST",
}

COLOURS = {"daisy": (240, 240, 240), "roses": (220, 20, 60), "tulips": (160, 60, 200)}


class Block(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str


def read_blocks(page, *languages):
    """The blocks of a page in these languages."""
    blocks = []
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S):
        language = {"py": "python"}.get(found[1], found[1])
        if language in languages:
            blocks.append(Block(page, found.string.count("\n", 0, found.start()) + 2, language, found[2]))
    return blocks


def read_commands(block):
    """The commands of a block of shell, each as its words, those that set variables among them."""
    lines = block.text.replace("\\\n", " ").splitlines()
    words = [word for line in lines for word in [*shlex.split(line, comments=True), "&&"]]
    commands, command = [], []
    for word in words:
        if word == "&&":
            commands += [[*takewhile(lambda one: one != ">", command)]] * bool(command)  # without where its output goes
            command = []
        else:
            command = [*command, word]
    return commands


def split_variables(words):
    """The variables that a command sets, and its words after them."""
    number = next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in words[:number]), words[number:]


def entry_not_run(text):
    """The entry of `NOT_RUN` that is for a command or code, or nothing."""
    return max((start for start in NOT_RUN if text.startswith(start)), key=len, default=None)


def make_small(text):
    """A recipe, command or code with less work."""
    for whole, small in SMALL.items():
        text = text.replace(whole, small)
    return text


def write_photos(folder, numbers):
    """Photos of each split, so many a class, whose colours tell their class, and whose shapes no two have in common."""
    random = np.random.default_rng(len(numbers))
    for split, number in numbers.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                shapes = random.integers(0, 2, (6, 8, 1)) * np.array(colour)
                photo = Image.fromarray(shapes.astype(np.uint8)).resize((64, 48), Image.Resampling.NEAREST)
                photo.save(folder / split / name / f"{i}.jpg")


def prepare(folder):
    """Puts what the pages name into a folder."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    for recipe in (folder / "configs").glob("*.yaml"):
        recipe.write_text(make_small(recipe.read_text(encoding="utf-8")), encoding="utf-8")
    (folder / "space.yaml").write_text("trials: 2\nspace:\n  model.lr: {log: [1.0e-3, 1.0e-1]}\n", encoding="utf-8")
    for copy in ("C", "PROBED/suggested.yaml", "logs/image_folder_tune/best.yaml"):
        (folder / copy).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(folder / "configs" / "image_folder.yaml", folder / copy)
    write_photos(folder / "PHOTOS", {"train": 11, "val": 4, "test": 4})  # 33 to train on, for 32 processes
    save_set(folder / "SCENES", each=12)
    save_set(folder / "NEW_SCENES", each=1)
    np.save(folder / "scene.npy", numbers((28, 28, 4)))
    for name in ("NEW_PHOTOS", "LABELLED_PHOTOS"):
        write_photos(folder / name, {"": 3})
    for name in ("photo.jpg", "rose.jpg", "MORE.jpg", "img_1.png"):
        save_photo(folder / name, COLOURS["roses"], (64, 48))
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted((folder / "NEW_PHOTOS").rglob("*.jpg"))]
    photos = sorted((folder / "PHOTOS").rglob("*.jpg"))
    images = [np.asarray(Image.open(path)) for path in photos]
    np.savez(folder / "SET.npz", x=images, y=[path.parent.name for path in photos])
    for name in ("NEW.csv", "LABELLED.csv"):
        (folder / name).write_text("\n".join(["path,label", *rows]), encoding="utf-8")
