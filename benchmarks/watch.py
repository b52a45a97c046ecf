"""Runs lit_ft as its command line does, and times it from within: what ``emnist.py``, ``cifar.py`` and others share.

`Race` and `Pace` are stopwatches; loops written by hand use them, too. `Racing` and `Pacing` are the callbacks that
hold them in a run of ``lit-ft fit``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_ft.cli.config.defaults import TRAINER
from lit_ft.evaluation.run_report import RunReport
from lit_ft.features.cache import FeatureCache
from lit_ft.training.progress import build_progress_bar
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

HERE = Path(__file__).parent


def in_process(*command: str) -> dict[str, Any]:
    """What a command of one thread writes into the file that ``{to}`` in its arguments stands for.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "found.json")
        here = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
        told = [part.replace("{to}", str(to)).replace("{folder}", folder) for part in command]
        done = subprocess.run(
            [sys.executable, *told], env={**os.environ, **here}, capture_output=True, text=True, check=False
        )
        if done.returncode or not to.is_file():
            raise RuntimeError(f"{' '.join(told)}\n{done.stdout}\n{done.stderr}")
        found: dict[str, Any] = json.loads(to.read_text())
        return found


def fit(watch: type[Callback], options: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """What a callback of this file finds in a run of ``lit-ft fit``, in a process of its own.

    Args:
        watch: The callback; it gets the file to write to.
        options: Its other options.
        *arguments: Those of ``lit-ft fit``.
    """
    given = [f"--trainer.callbacks.{key}={json.dumps(value)}" for key, value in options.items()]
    callback = [f"--trainer.callbacks+=watch.{watch.__name__}", "--trainer.callbacks.to={to}", *given]
    return in_process("-m", "lit_ft", "fit", *arguments, "--trainer.default_root_dir={folder}", *callback)


def command_line_trainer(
    folder: Path, *callbacks: Callback, unfreezing: GradualUnfreezing | None = None, **options: Any
) -> Trainer:
    """A trainer as the command line makes it: but without checkpoints.

    Args:
        folder: Where all that it writes goes.
        *callbacks: Further ones, before those.
        unfreezing: What trains when; all, unless given.
        **options: Of the trainer.
    """
    usual = [unfreezing or GradualUnfreezing("full"), FeatureCache(), RunReport(), build_progress_bar()]
    own = {"logger": TensorBoardLogger(folder), "default_root_dir": folder, "enable_checkpointing": False}
    return Trainer(**{**TRAINER, **own, "callbacks": [*callbacks, *usual], **options})


class Stopwatch:
    """Seconds of this process, by the clock and by the processor, without pauses."""

    def __init__(self) -> None:
        self.paused = [0.0, 0.0]
        self._since = self._now()

    @staticmethod
    def _now() -> list[float]:
        return [time.perf_counter(), time.process_time()]

    def seconds(self) -> list[float]:
        """By the clock and by the processor, up to now."""
        return [b + now - since for b, now, since in zip(self.paused, self._now(), self._since, strict=True)]

    def pause(self) -> None:
        """Stops."""
        self.paused = self.seconds()

    def go_on(self) -> None:
        """Starts again."""
        self._since = self._now()


class Race:
    """How long a training takes to reach each of some test accuracies; looking does not count.

    It looks after every 10 steps, and later after every 5% more.

    Args:
        goals: The accuracies, rising.
    """

    def __init__(self, goals: Sequence[float]) -> None:
        self.watch = Stopwatch()
        self.reached: dict[str, list[float]] = {}
        self._goals = list(goals)
        self._next = 10
        self.accuracy = 0.0

    def look(self, step: int, accuracy: Callable[[], float]) -> bool:
        """Looks after a step, if it is time to; says whether all goals are reached.

        Args:
            step: The number of steps so far.
            accuracy: Measures it.
        """
        if step >= self._next:
            self.watch.pause()
            self._next = max(step + 10, int(step * 1.05))
            self.accuracy = accuracy()
            while self._goals and self.accuracy >= self._goals[0]:
                self.reached[f"{self._goals.pop(0):g}"] = [step, *self.watch.paused]
            self.watch.go_on()
        return not self._goals


class Racing(Callback):
    """Holds a race on the test images in a run of lit_ft; validation does not count, and the run ends with the race.

    Args:
        to: The file for what is found: for each accuracy the step, and the seconds by the clock and the processor.
        goals: The accuracies, rising.
    """

    def __init__(self, to: str, goals: list[float]) -> None:
        self.to = Path(to)
        self.goals = goals

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts."""
        self.race = Race(self.goals)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pauses, but for the sanity check, which comes before the start."""
        if not trainer.sanity_checking:
            self.race.watch.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on."""
        if not trainer.sanity_checking:
            self.race.watch.go_on()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        """Looks, and ends the run when there is no goal left."""
        test = trainer.datamodule.splits["test"]  # type: ignore[attr-defined]
        if self.race.look(trainer.global_step, lambda: accuracy(pl_module, test.images[test.rows], test.targets)):
            trainer.should_stop = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes what was found, and the last accuracy of the validation."""
        val = float(trainer.callback_metrics.get("val/acc", torch.nan))
        self.to.write_text(json.dumps({"reached": self.race.reached, "last": self.race.accuracy, "val": val}))


@torch.inference_mode()
def accuracy(model: torch.nn.Module, images: Tensor, targets: Tensor) -> float:
    """The share of images whose class a model tells; its mode stays what it is."""
    training = model.training
    model.eval()
    hits = [model(part).argmax(1) == of for part, of in zip(images.split(500), targets.split(500), strict=True)]
    model.train(training)
    return float(torch.cat(hits).float().mean())


class Pace:
    """Images a second from after the first few steps on, by the clock and by the processor.

    Args:
        skip: The steps that do not count.
    """

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self._steps = self._images = 0
        self._watch = Stopwatch()
        self._at: list[float] = []

    def step(self, images: int) -> None:
        """Notes a step that has ended, of so many images."""
        self._steps += 1
        if self._steps == self.skip:
            self._watch = Stopwatch()
        if self._steps > self.skip:
            self._images += images
            self._at = self._watch.seconds()

    def found(self) -> dict[str, float]:
        """Images a second."""
        wall, cpu = self._at
        return {"wall": self._images / wall, "cpu": self._images / cpu}


class Pacing(Callback):
    """Measures the pace of a run of lit_ft's.

    Args:
        to: The file for the images a second.
        skip: The steps that do not count.
    """

    def __init__(self, to: str, skip: int) -> None:
        self.to = Path(to)
        self.pace = Pace(skip)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the end of a step."""
        if trainer.strategy.root_device.type == "cuda" and batch_idx + 1 in (
            self.pace.skip,
            trainer.num_training_batches,
        ):
            torch.cuda.synchronize()
        self.pace.step(len(batch[0]))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes it."""
        self.to.write_text(json.dumps(self.pace.found()))
