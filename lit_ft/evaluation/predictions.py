"""Callback that writes predictions to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_ft.errors import UserError
from lit_ft.evaluation.prediction_files import SEPARATORS, build_rows, check_target, is_device, write_rows
from lit_ft.model.prediction import name_flag
from lit_ft.runs import Run, find_run

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
