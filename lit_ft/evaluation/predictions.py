"""Callback that writes predictions to a file, and the rows of that file."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.assets import name_unfinished, replace_atomically
from lit_ft.data.tables.tables import escape_formula
from lit_ft.errors import UserError
from lit_ft.model.prediction import name_flag
from lit_ft.runs import Run, find_run

SEPARATORS = {".csv": ",", ".tsv": "\t"}

# Descriptors that this process has open, perhaps on a file: opened again, it would be overwritten from its beginning.
_DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}


_FLAGS = "unsure", "unlike_training"


class PredictionWriter(Callback):
    """Writes ``predictions.csv``: path, class and probability, one row an image, in the order of the data.

    Where that is known, it has whether the model is unsure of the class, and the image unlike those of the validation.

    With several labels an image, a row has the probability of each class instead, and for regression each number.
    Numbers have enough digits to give back the model's. An apostrophe precedes text that a spreadsheet would run as a
    formula.

    Args:
        file: The file to write, .csv or .tsv, or a pipe or device such as /dev/stdout; null writes predictions.csv into
            the folder of the run.
        overwrite: Whether to replace an existing file.

    Raises:
        UserError: If the file has another suffix.
    """

    def __init__(self, file: str | None = None, overwrite: bool = False) -> None:
        self.file = file
        self.overwrite = overwrite
        self.path: Path | None = None
        self._predictions: dict[int, list[float]] = {}
        self._digits = 9
        self._flags: list[str] = []
        if file is not None and not is_device(Path(file)) and Path(file).suffix.lower() not in SEPARATORS:
            raise UserError(f"`predictions.file`: {file} must end in {' or '.join(SEPARATORS)}")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a file that cannot be written, or would be lost, before anything is predicted.

        Raises:
            UserError: If the file exists, or cannot be written.
        """
        if stage != "predict":
            return
        path = self._find_path(trainer)
        refusal = check_target(path, self.overwrite) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            refusal = trainer.strategy.broadcast(refusal)  # else the others would wait for the first
        if refusal is not None:
            raise UserError(f"`predictions.file`: {refusal}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the predictions of an earlier call."""
        self._predictions = {}

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps the predictions of a batch under the indices of its images."""
        values: Tensor = outputs["answers"]
        self._digits = 17 if values.dtype == torch.float64 else 9  # as many as give the number back
        indices = outputs.get("indices")
        done = len(self._predictions)
        numbers = range(done, done + len(values)) if indices is None else indices.tolist()
        self._flags = [name for name in _FLAGS if name in outputs]
        values = torch.cat([values, *(outputs[name].to(values).unsqueeze(1) for name in self._flags)], dim=1)
        self._predictions.update(zip(numbers, values.tolist(), strict=True))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers the predictions of all ranks and writes them on the first."""
        parts: list[Any] = [self._predictions]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self._predictions)
        path = self._find_path(trainer)
        if not trainer.is_global_zero:
            return
        self.path = path
        predictions = {index: values for part in parts for index, values in part.items()}
        paths = getattr(cast(Any, trainer).datamodule, "predict_paths", None)
        module: Any = pl_module
        is_multiclass = module.task.name == "multiclass"
        flags = [name_flag(flag, () if is_multiclass else module.class_names) for flag in self._flags]
        write_rows(path, build_rows(predictions, module.class_names, paths, is_multiclass, self._digits, flags))

    def _find_path(self, trainer: L.Trainer) -> Path:
        run = find_run(trainer) or Run(Path(trainer.default_root_dir))
        return Path(self.file) if self.file else run.predictions


def build_rows(
    probabilities: Mapping[int, Sequence[float]],
    names: Sequence[str],
    paths: Sequence[str] | None,
    is_multiclass: bool,
    digits: int,
    flags: Sequence[str] = (),
) -> Iterator[list[str]]:
    """Yields the header, and a row an image in the order of the data.

    Args:
        probabilities: Probabilities ``(K,)`` of each image by its index, or the numbers of a regression, and flags.
        names: The names of the classes.
        paths: Path of each image; without them, images are named by their index.
        is_multiclass: Whether a row has the best class and its probability, rather than a column a class.
        digits: Number of significant digits.
        flags: Names of the flags, which are 0 or 1.
    """
    names = [escape_formula(name) for name in names]
    yield ["path", *(["class", "probability"] if is_multiclass else names), *flags]
    for index in sorted(probabilities):
        path = escape_formula(str(paths[index])) if paths else str(index)
        values, flagged = probabilities[index][: len(names)], probabilities[index][len(names) :]
        cells = [f"{value:.{digits}g}" for value in values]
        if is_multiclass:
            probability, best = torch.tensor(values, dtype=torch.float64).max(dim=0)
            cells = [names[int(best)], f"{float(probability):.{digits}g}"]
        yield [path, *cells, *("yes" if flag else "no" for flag in flagged)]


def write_rows(path: Path, rows: Iterable[Sequence[str]]) -> None:
    """Writes rows to a file, which is replaced as a whole, or to a pipe or device.

    Raises:
        UserError: If the file cannot be written.
    """
    with nullcontext(path) if is_device(path) else replace_atomically(path) as target, _open(target) as file:
        csv.writer(file, delimiter=SEPARATORS.get(path.suffix.lower(), ",")).writerows(rows)


def check_target(path: Path, overwrite: bool) -> str | None:
    """The reason why predictions cannot be written to a file, pipe or device, or must not be."""
    if is_device(path):  # not opened: the reader of a pipe would see its end
        return None if os.access(path, os.W_OK) else f"{path} cannot be written"
    if os.path.isdir(path):  # unlike that of pathlib, it is false where a name is too long
        return f"{path} is a folder, not a file"
    exists = os.path.exists(path)
    if exists and not overwrite:
        return f"{path} exists; name another file, or to overwrite it: `predictions.overwrite` true"
    if exists and not os.access(path, os.W_OK):
        return f"{path} is read-only; name another file"
    unfinished = name_unfinished(path)
    made = [folder for folder in unfinished.parents if not os.path.exists(folder)]  # unlike pathlib, of any name
    try:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        return f"{path} cannot be written ({error.strerror}); name another file"
    finally:
        with suppress(OSError):  # into which another process may have written by now
            for folder in made:
                folder.rmdir()
    return None


def is_device(path: Path) -> bool:
    """Whether a path is written in place: a pipe, a device, or a descriptor of this process."""
    return _find_descriptor(path) is not None or (os.path.exists(path) and not path.is_file() and not path.is_dir())


def _find_descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path stands for, if any."""
    number = str(path).removeprefix("/dev/fd/")
    return int(number) if number.isdecimal() else _DESCRIPTORS.get(str(path))


def _open(path: Path) -> TextIO:
    descriptor = _find_descriptor(path)
    if descriptor is not None:
        sys.stdout.flush()
    target = path if descriptor is None else os.dup(descriptor)
    # Names of files need not be valid text.
    return open(target, "w", newline="", encoding="utf-8", errors="surrogateescape")
