"""What the model of each fold of a cross-validation gave for the images that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from lit_ft.assets import replace_atomically
from lit_ft.backbones.weights import torch_files
from lit_ft.evaluation.results import prediction_rows
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import find_run
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task, TaskName
from lit_ft.training.evaluated import Evaluated, find_images, name_images
from lit_ft.training.selected import SelectionListener, ValidationOutputs


@dataclass(frozen=True)
class OutOfFold:
    """What models gave for images that they have not seen.

    Args:
        names: The path of each image, or its place in an array.
        predictions: Calibrated probabilities ``(N, K)``, or for ``regression`` numbers.
        targets: As metrics count them: classes ``(N,)``, labels or numbers ``(N, K)``.
        folds: The fold that each was held out in ``(N,)``, from 1.
        task: The task.
        class_names: Names of the classes, labels or numbers.
    """

    names: list[str]
    predictions: Tensor
    targets: Tensor
    folds: Tensor
    task: TaskName
    class_names: list[str]

    @classmethod
    def read(cls, path: Path) -> OutOfFold:
        """Reads what `OutOfFoldWriter` wrote."""
        content = torch_files.load(str(path))  # of an earlier version with a key more
        return cls(**{one.name: content[one.name] for one in fields(cls)})

    @classmethod
    def join(cls, parts: Sequence[OutOfFold]) -> OutOfFold:
        """The images of all folds."""
        columns: dict[str, Any] = {
            key: torch.cat([getattr(part, key) for part in parts]) for key in ("predictions", "targets", "folds")
        }
        same = {key: getattr(parts[0], key) for key in ("task", "class_names")}
        return cls(names=[name for part in parts for name in part.names], **columns, **same)

    def as_evaluated(self) -> tuple[Evaluated, Task]:
        """The images as those of one evaluation, and its task; numbers are standardised by all of them."""
        is_numbers = self.task == "regression"
        units = Standardisation.of(self.targets.reshape(self.predictions.shape)) if is_numbers else None
        task = Task(self.task, len(self.class_names), standardisation=units)
        return Evaluated(task.restore_logits(self.predictions), self.targets, self.names), task

    def rows(self) -> Iterator[list[str]]:
        """Yields the header, and a row an image: its fold, what is true, what was predicted, and all probabilities."""
        table = prediction_rows(*self.as_evaluated(), self.class_names)
        has_all = self.task != "multiclass"  # labels and numbers are in that table
        path, *columns = next(table)
        yield [path, "fold", *columns, *([] if has_all else [f"probability of {name}" for name in self.class_names])]
        for (path, *cells), fold, values in zip(table, self.folds.tolist(), self.predictions.tolist(), strict=True):
            yield [path, str(fold), *cells, *([] if has_all else [f"{value:.9g}" for value in values])]


class OutOfFoldWriter(SelectionListener):
    """Writes what the model of a fold gave for the images that were held out, once it is chosen and calibrated.

    Args:
        fold: The number of the fold.
    """

    def __init__(self, fold: int) -> None:
        self.fold = fold

    def on_selected(
        self, trainer: L.Trainer, pl_module: L.LightningModule, share: float, outputs: ValidationOutputs | None
    ) -> None:
        """Writes it, where it is known."""
        run, data = find_run(trainer), cast(Any, trainer).datamodule
        if outputs is None or run is None or not trainer.is_global_zero:
            return
        own, num = cast(FineTuneModule, pl_module), len(outputs.targets)
        content = {
            "names": _name_once(data, num),
            "predictions": own.task.predict(outputs.logits),
            "targets": outputs.targets,
            "folds": torch.full((num,), self.fold),
            "task": own.task.name,
            "class_names": list(own.class_names),
        }
        with replace_atomically(run.out_of_fold) as unfinished:
            torch.save(content, unfinished)


def _name_once(data: Any, num: int) -> list[str]:
    """Names of the first validation images that no other fold has: paths, or places in the data set."""
    rows = getattr(find_images(data, "val"), "rows", None)
    return name_images(data, "val", num) if rows is None else [str(row) for row in rows[:num].tolist()]
