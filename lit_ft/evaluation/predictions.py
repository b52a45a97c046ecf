"""Decides what a prediction looks like on disk: `PredictionWriter` writes one row an image, in order."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.data.files.cells import guarded
from lit_ft.errors import UserError, refuse_unwritable
from lit_ft.runs import Run, find_run

_SEPARATORS = {".csv": ",", ".tsv": "\t"}

# What of this process was opened already, perhaps a file that it was sent to: opened again, it would be written from
# its beginning, over what was printed.
_DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}


class PredictionWriter(Callback):
    """Writes ``predictions.csv``: path, class and probability, one row an image, in the order of the data.

    With several labels an image, the row holds each class's probability instead, and for regression each number.
    Numbers have all digits of the model's. What a spreadsheet would run as a formula has an apostrophe before it.

    Args:
        file: The file to write, .csv or .tsv, or a pipe or device such as /dev/stdout; null puts predictions.csv into
            the folder of the run.
        overwrite: Whether a file that exists is replaced.

    Raises:
        UserError: If the file has another suffix.
    """

    def __init__(self, file: str | None = None, overwrite: bool = False) -> None:
        self.file = file
        self.overwrite = overwrite
        self.path: Path | None = None
        self._rows: dict[int, list[float]] = {}
        self._digits = 9  # of float32
        if file is not None and not _is_device(Path(file)) and Path(file).suffix.lower() not in _SEPARATORS:
            raise UserError(f"`predictions.file`: {file} must end in {' or '.join(_SEPARATORS)}")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a file that could not be written, or would be lost, before anything is predicted.

        Raises:
            UserError: The file exists, or cannot be written.
        """
        if stage != "predict":
            return
        path = self._place(trainer)
        refusal = self._refusal(path) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            refusal = trainer.strategy.broadcast(refusal)  # else the others would wait for the first
        if refusal is not None:
            raise UserError(f"`predictions.file`: {refusal}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts afresh."""
        self._rows = {}

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps the answers of a batch under the indices of its images."""
        answers: Tensor = outputs["answers"]
        self._digits = 17 if answers.dtype == torch.float64 else 9
        indices = outputs.get("indices")
        numbers = range(len(self._rows), len(self._rows) + len(answers)) if indices is None else indices.tolist()
        self._rows.update(zip(numbers, answers.tolist(), strict=True))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Brings the rows of all ranks together and writes them on the first."""
        parts: list[Any] = [self._rows]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self._rows)
        path = self._place(trainer)
        if not trainer.is_global_zero:
            return
        rows = {index: answers for part in parts for index, answers in part.items()}
        self.path = path
        paths = getattr(cast(Any, trainer).datamodule, "predict_paths", None)
        if _is_device(path):
            self._write(path, rows, paths, pl_module)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that an earlier file stays whole until this one is.
        place = path.resolve()
        unfinished = _unfinished(place)
        try:
            with refuse_unwritable(path):
                self._write(unfinished, rows, paths, pl_module)
                unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)

    def _place(self, trainer: L.Trainer) -> Path:
        run = find_run(trainer) or Run(Path(trainer.default_root_dir))
        return Path(self.file) if self.file else run.predictions

    def _refusal(self, path: Path) -> str | None:
        """Why a file cannot be written, or must not be."""
        if _is_device(path):  # not opened: the reader of a pipe would see its end
            is_open = os.access(path, os.W_OK)
            return None if is_open else f"{path} cannot be written"
        if path.is_dir():
            return f"{path} is a folder, not a file"
        if path.exists() and not self.overwrite:
            return f"{path} exists; name another file, or to overwrite it: `predictions.overwrite` true"
        if path.exists() and not os.access(path, os.W_OK):
            return f"{path} is read-only; name another file"
        place = path.resolve()
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _unfinished(place).touch()
            _unfinished(place).unlink()
        except OSError as error:
            return f"{path} cannot be written ({error.strerror}); name another file"
        return None

    def _write(self, place: Path, rows: dict[int, list[float]], paths: Sequence[str] | None, module: Any) -> None:
        with _opened(place) as file:
            writer = csv.writer(file, delimiter=_SEPARATORS.get(cast(Path, self.path).suffix.lower(), ","))
            single = module.task.name == "multiclass"
            names = list(map(guarded, module.class_names))
            writer.writerow(["path", "class", "probability"] if single else ["path", *names])
            for index in sorted(rows):
                path = guarded(str(paths[index])) if paths else index
                if single:
                    probability, best = torch.tensor(rows[index], dtype=torch.float64).max(dim=0)
                    writer.writerow([path, names[int(best)], self._text(float(probability))])
                else:
                    writer.writerow([path, *map(self._text, rows[index])])

    def _text(self, number: float) -> str:
        """A number with the digits that give it back."""
        return f"{number:.{self._digits}g}"


def _is_device(path: Path) -> bool:
    """Whether a path is written to as it is: a pipe or device, and what this process has opened."""
    return _descriptor(path) is not None or (path.exists() and not path.is_file() and not path.is_dir())


def _descriptor(path: Path) -> int | None:
    """The number under which this process has opened what a path stands for."""
    number = str(path).removeprefix("/dev/fd/")
    return int(number) if number.isdecimal() else _DESCRIPTORS.get(str(path))


def _opened(path: Path) -> TextIO:
    number = _descriptor(path)
    if number is not None:
        sys.stdout.flush()
    target = path if number is None else os.dup(number)
    # Names of files need not be valid text.
    return open(target, "w", newline="", encoding="utf-8", errors="surrogateescape")


def _unfinished(place: Path) -> Path:
    return place.with_name(f".{place.name}.{os.getpid()}")
