"""Decides what a prediction looks like on disk: `PredictionWriter` writes one CSV row an image, in order."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.faults import names_file


class PredictionWriter(Callback):
    """Writes ``predictions.csv``: path, class and probability, one row an image, in the order of the data.

    With several labels an image, the row holds each class's probability instead, and for regression each number.

    Args:
        file: The file to write; null puts predictions.csv into the folder of the run.
    """

    def __init__(self, file: str | None = None) -> None:
        self.file = file
        self.path: Path | None = None
        self._rows: dict[int, list[float]] = {}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts afresh."""
        self._rows = {}

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keeps the answers of a batch under the indices of its images."""
        answers: Tensor = outputs["answers"]
        indices = outputs.get("indices")
        numbers = range(len(self._rows), len(self._rows) + len(answers)) if indices is None else indices.tolist()
        self._rows.update(zip(numbers, answers.tolist(), strict=True))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Brings the rows of all ranks together and writes them on the first."""
        parts: list[Any] = [self._rows]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            dist.all_gather_object(parts, self._rows)
        log_dir = trainer.log_dir  # asks all ranks, so it must not stand behind the next line
        if not trainer.is_global_zero:
            return
        rows = {index: answers for part in parts for index, answers in part.items()}
        self.path = Path(self.file) if self.file else Path(log_dir or trainer.default_root_dir) / "predictions.csv"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        paths = getattr(cast(Any, trainer).datamodule, "predict_paths", None)
        if self.path.exists() and not self.path.is_file():  # a pipe or device
            _write(self.path, rows, paths, pl_module)
            return
        # Beside its place, so that an earlier file stays whole until this one is.
        place = self.path.resolve()
        unfinished = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            with names_file(self.path):
                _write(unfinished, rows, paths, pl_module)
                unfinished.replace(place)
        finally:
            unfinished.unlink(missing_ok=True)


def _write(place: Path, rows: dict[int, list[float]], paths: Sequence[str] | None, module: Any) -> None:
    # Names of files need not be valid text.
    with place.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        single = module.task.name == "multiclass"
        writer.writerow(["path", "class", "probability"] if single else ["path", *module.class_names])
        for index in sorted(rows):
            path = paths[index] if paths else index
            if single:
                probability, best = torch.tensor(rows[index]).max(dim=0)
                writer.writerow([path, module.class_names[int(best)], f"{float(probability):.4f}"])
            else:
                writer.writerow([path, *(f"{value:.4f}" for value in rows[index])])
