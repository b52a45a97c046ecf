"""Compares the training loop of ``lit-ft fit``, with all that it shows and saves, with a loop written by hand.

    python benchmarks/loop.py [--rounds 7] [--only CASE]

First as two programs that take turns: ``lit-ft fit``, and a script with the same network in the same memory format,
images in memory, the same fused optimizer, and neither progress nor metrics nor checkpoints.

Then within one process, which is the limit: there the loop by hand has what lit_ft does for a process, as keeping freed
memory, and batches of the same loader. It has its turn before each step of a run, so that both see the same machine; a
ratio is of the sums of an epoch. Images/s are those of training alone. What an epoch costs besides, for validation,
checkpoints and reports, is told apart. ``lit-ft`` runs as from the command line: progress, TensorBoard, metrics, two
checkpoints an epoch, the run's report and gradual unfreezing. Plain Lightning has its own bar, logger and checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
import time
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from peers.table import spread
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from watch import HERE, Pace, Pacing, fit, in_process

from lit_ft import FineTuneModule
from lit_ft.cli import main as lit_ft
from lit_ft.data.images.transforms import ShiftFlip
from lit_ft.data.loading.protocols import Split
from lit_ft.data.modules.arrays import ArrayDataModule, ArraySplit

CASES: dict[str, dict[str, Any]] = {
    "cnn": {"backbone": "mnist_cnn", "strategy": "full", "shape": [1, 28, 28], "batch_size": 128, "batches": 40},
    "resnet18": {"backbone": "resnet18", "strategy": "full", "shape": [3, 224, 224], "batch_size": 32, "batches": 3},
    # Hardly any arithmetic, and 1.2 million parameters as SqueezeNet has: what an epoch costs, whatever it trains.
    "head": {"backbone": "wide", "strategy": "linear_probe", "shape": [1, 48, 48], "batch_size": 32, "batches": 16},
}
# Of the first comparison: steps of a turn, and those before the clock starts.
STEPS = {"cnn": (110, 10), "resnet18": (6, 1)}
WIDE = {
    "class_path": "loop.Wide",
    "stages": {"wide": "wide"},
    "classifier": "classifier",
    "channels": 1,
}


class Wide(nn.Module):
    """A dense layer from images ``(B, 1, 48, 48)`` to 512 features, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 512))
        self.classifier = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(self.wide(images))
        return logits


class Noise(ArrayDataModule):
    """Random pixels, as speed does not depend on them; the last batch is for validation."""

    basic_augment = ShiftFlip(shift=0)
    class_names = [str(i) for i in range(10)]  # noqa: RUF012
    test_name = "noise"

    def __init__(self, shape: list[int], batches: int, batch_size: int) -> None:
        super().__init__(batch_size=batch_size, augment="none")
        self.shape, self.num_train = shape, batches * batch_size

    def read_splits(self) -> dict[Split, ArraySplit]:
        """Makes the images."""
        images = torch.randint(0, 256, (self.num_train + self.batch_size, *self.shape), dtype=torch.uint8)
        rows = torch.arange(len(images))
        whole = ArraySplit.whole(images, rows % 10)
        return {"train": whole.part(rows[: self.num_train]), "val": whole.part(rows[self.num_train :])}


class Clock(Callback):
    """Gives the loop by hand its turn before each step; notes the seconds of both, and those around an epoch."""

    # By hand, in the run, and what the epoch took besides; each the seconds on the clock and those of the processor.
    turns: list[list[Tensor]] = []  # noqa: RUF012

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Forgets the last run."""
        Clock.turns, self._network = [], None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Copies what trains, once that is known, and starts the clock."""
        self._note()
        if self._network is None:
            network = nn.Sequential(pl_module.normalise, pl_module.backbone, pl_module.head)
            self._network = deepcopy(network)
            trained = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
            group = trainer.optimizers[0].param_groups[0]
            self._optimizer = torch.optim.AdamW(trained, **{key: group[key] for key in ("lr", "fused", "foreach")})
            self._loader = trainer.datamodule.train_dataloader()
        self._network.train()
        self._batches = iter(self._loader)
        self._hand, self._run = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        self._left = now()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Makes a step by hand."""
        entered = now()
        images, targets = next(self._batches)
        # The same rate, so that both train alike: arithmetic on the smallest of numbers takes longer.
        self._optimizer.param_groups[0]["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._optimizer.zero_grad()
        F.cross_entropy(self._network(images), targets).backward()
        self._optimizer.step()
        self._run += entered - self._left
        self._left = now()
        self._hand += self._left - entered

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Ends the last step of the epoch."""
        left, self._left = self._left, now()
        self._run += self._left - left

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Notes the last epoch."""
        self._note()

    def _note(self) -> None:
        if self._network is not None:
            Clock.turns.append([self._hand, self._run, now() - self._left])


def now() -> Tensor:
    """Seconds, on the clock and of the processor."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


class Plain(L.LightningModule):
    """The same network as a user of Lightning would train it, with a loss and an accuracy that are logged."""

    def __init__(self, module: FineTuneModule) -> None:
        super().__init__()
        self.normalise, self.backbone, self.head = module.normalise, module.backbone, module.head

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Cross-entropy, in the bar and in TensorBoard."""
        loss = F.cross_entropy(self.head(self.backbone(self.normalise(batch[0]))), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """The accuracy."""
        logits = self.head(self.backbone(self.normalise(batch[0])))
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what trains."""
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3, fused=True)


class Screen(io.StringIO):
    """What a terminal would show."""

    def isatty(self) -> bool:
        """As a terminal says."""
        return True


def arguments(case: dict[str, Any], epochs: int, folder: str) -> list[str]:
    """Those of ``lit-ft fit``."""
    options = {
        "model.weights": "null",
        "model.backbone": WIDE if case["backbone"] == "wide" else case["backbone"],
        "model.input.size": case["shape"][-1],
        "model.input.resize": case["shape"][-1],
        "unfreeze.strategy": case["strategy"],
        "data": "loop.Noise",
        **{f"data.{key}": case[key] for key in ("shape", "batch_size", "batches")},
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": epochs,
        "trainer.num_sanity_val_steps": 0,
        "trainer.default_root_dir": folder,
    }
    return [f"--{key}={value}" for key, value in options.items()]


def command_line(case: dict[str, Any], epochs: int, folder: str) -> None:
    """``lit-ft fit`` in this process, with the clock."""
    args = ["fit", *arguments(case, epochs, folder), f"--trainer.callbacks+={__name__}.Clock"]
    if code := lit_ft(args):
        raise SystemExit(code)


def script(name: str) -> dict[str, float]:
    """The pace of a script with a loop."""
    case, (steps, skip) = CASES[name], STEPS[name]
    small = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 13 * 13, 128), nn.ReLU())
    network = nn.Sequential(*small, nn.Linear(128, 10)) if name == "cnn" else resnet18(num_classes=10)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    images = torch.randint(0, 256, (steps * case["batch_size"], *case["shape"]), dtype=torch.uint8)
    targets = torch.arange(len(images)) % 10
    pace = Pace(skip)
    for rows in torch.randperm(len(images)).split(case["batch_size"]):
        batch = ((images[rows] / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        F.cross_entropy(network(batch), targets[rows]).backward()
        optimizer.step()
        pace.step(len(batch))
    return pace.found()


def programs(name: str, rounds: int) -> None:
    """Prints the pace of ``lit-ft fit`` and of the script, each a process of its own in its turn."""
    steps, skip = STEPS[name]
    found: dict[str, list[dict[str, float]]] = {"lit-ft fit": [], "a script": []}
    for _ in range(rounds):
        given = arguments({**CASES[name], "batches": steps}, 1, "{folder}")
        found["lit-ft fit"].append(fit(Pacing, {"skip": skip}, *given))
        found["a script"].append(in_process(str(HERE / "loop.py"), "--script", name, "--to", "{to}"))
    print(f"{name}: programs of their own, {steps - skip} steps; min / median / max of {rounds}")
    for clock, told in (("wall", "images/s"), ("cpu", "images a CPU second")):
        of = {who: [turn[clock] for turn in turns] for who, turns in found.items()}
        ratios = [ours / other for ours, other in zip(*of.values(), strict=True)]
        paces = (f"{who} {spread(values, ',.0f')}" for who, values in of.items())
        print(f"    {told:<24}{', '.join(paces)}; ratio {spread(ratios, '.2f')}", flush=True)


def plain_lightning(case: dict[str, Any], epochs: int, folder: str) -> None:
    """A script with Lightning's own bar at each step, its logger and its checkpoint."""
    backbone: Any = WIDE if case["backbone"] == "wide" else case["backbone"]
    size = {"size": case["shape"][-1], "resize": case["shape"][-1]}
    module = FineTuneModule(backbone, weights=None, classes=10, input=size)  # type: ignore[arg-type]
    if case["strategy"] == "linear_probe":
        module.set_trainable(["head"])
    data = Noise(*(case[key] for key in ("shape", "batches", "batch_size")))
    data.spec = module.input_spec
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        callbacks=[TQDMProgressBar(refresh_rate=1), Clock()],
        logger=TensorBoardLogger(folder),
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(Plain(module), datamodule=data)


def report(name: str, case: dict[str, Any], turns: list[list[Tensor]]) -> None:
    """Prints least, middle and greatest."""
    images = case["batches"] * case["batch_size"]
    hand, run, rest = torch.stack([torch.stack(turn) for turn in turns]).permute(1, 2, 0)
    rows = {
        "images/s": (",.0f", images / run[0]),
        "images/s by hand": (",.0f", images / hand[0]),
        "ratio": (".3f", hand[0] / run[0]),
        "ratio by CPU time": (".3f", hand[1] / run[1]),
        "above it, CPU us a step": (",.0f", 1e6 * (run - hand)[1] / case["batches"]),
        "besides, ms an epoch": (",.0f", 1000 * rest[0]),
        "besides, CPU ms": (",.0f", 1000 * rest[1]),
    }
    print(f"  {name}")
    for row, (form, values) in rows.items():
        print(f"    {row:<24}{spread(values.tolist(), form)}", flush=True)


def main() -> None:
    """Prints what each case does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--script", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if args.script:
        Path(args.to).write_text(json.dumps(script(args.script)))
        return
    for key in [args.only] if args.only else CASES:
        if key in STEPS:
            programs(key, args.rounds)
        within(CASES[key], args.rounds)


def within(case: dict[str, Any], rounds: int) -> None:
    """Prints what the loops do in one process."""
    contestants = {
        "lit-ft, bar": (command_line, Screen),
        "lit-ft, lines": (command_line, io.StringIO),
        "Lightning, its own bar": (plain_lightning, Screen),
    }
    print(f"{case['backbone']}: within one process, {case['batches']} batches of {case['batch_size']}; {rounds} rounds")
    for name, (run, screen) in contestants.items():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(screen()):
            run(case, rounds + 1, folder)
        report(name, case, Clock.turns[1:])  # the first epoch is for imports and memory


if __name__ == "__main__":
    main()
