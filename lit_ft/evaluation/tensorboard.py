"""What only TensorBoard shows: the layout of charts, the table of hyperparameters, and the projector of features."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from lit_ft.evaluation.loggers import encode_picture
from lit_ft.runs import Run
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.unfreezing.view import find_unfreezing

Params = dict[str, str | int | float | bool]

BEST = "val_best"
"""Group of the validation metrics of the model that is handed back; its cards come after those of val."""


FLUSH_SECONDS = 1.0
"""Least time between two flushes; Lightning asks for one with whatever it logs, which in short epochs adds up."""


class BoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger without the card of the epoch, which Lightning logs with whatever it logs.

    TensorBoard is loaded, and its file made, when something is logged.
    """

    _flushed = -math.inf
    _is_open = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """TensorBoard's writer, or what makes it when it is used: Lightning asks for it as it sets a fit up."""
        return self.open() if self._is_open else _LateWriter(self.open)

    def open(self) -> Any:
        """Makes the writer, once."""
        self._is_open = True
        return super().experiment

    def save(self) -> None:
        """Writes the hyperparameters, and what waits in memory, if that is due; the end of a run writes all."""
        if self._is_open and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            super().save()
            self._flushed = time.monotonic()

    def finalize(self, status: str) -> None:
        """Writes all, and closes the file."""
        self._flushed = -math.inf
        super().finalize(status)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


class _LateWriter:
    """Has the attributes of a writer that is made for the first of them."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)


def build_layout(task: str, num_phases: int) -> dict[str, dict[str, list[Any]]]:
    """The charts of the tab Custom Scalars, in which train and val share one, as ``add_custom_scalars`` takes them.

    Of several phases the share of the parameters that train is in the same charts, as a line that rises where stages
    are unfrozen: TensorBoard has no vertical marks.

    >>> build_layout("multiclass", 1)["Run"]["acc"]
    ['Multiline', ['^train/acc$', '^val/acc$']]
    """
    main = MAIN_METRIC[task][0].removeprefix("val/")
    marks = ["phase/trained_share"] if num_phases > 1 else []
    charts = {"loss": ["train/loss_epoch", "val/loss", *marks], main: [f"train/{main}", f"val/{main}", *marks]}
    lines: dict[str, list[Any]] = {
        title: ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]] for title, tags in charts.items()
    }
    lines["learning rates"] = ["Multiline", ["^lr/"]]
    lines["drift from the pretrained weights"] = ["Multiline", ["^drift/"]]
    return {"Run": lines}


def collect_params(trainer: Any, module: Any) -> Params:
    """What runs are told apart by: backbone, strategy, rates, epochs, batch size, augmentation and seed."""
    options, data, unfreezing = module.hparams, trainer.datamodule, find_unfreezing(trainer)
    backbone = options.get("backbone", type(module).__name__)
    found = {
        "backbone": backbone if isinstance(backbone, str) else backbone["class_path"],
        "strategy": unfreezing.strategy if unfreezing else "full",
        "lr": options.get("lr"),
        "lr_backbone": options.get("lr_backbone"),
        "lr_decay": options.get("lr_decay"),
        "epochs": trainer.max_epochs,
        "batch_size": getattr(data, "batch_size", None),
        "augment": getattr(data, "augment", None),
        "seed": getattr(module, "run_seed", None),
    }
    return {name: value for name, value in found.items() if value is not None}


def log_layout(board: Any, task: str, num_phases: int, params: Params) -> None:
    """Logs the charts of the tab Custom Scalars, and the table of hyperparameters.

    The metrics of that table are the last values of scalars: of the model that is handed back, and of a test. Neither
    Lightning's ``log_hyperparams`` nor torch's ``add_hparams`` takes their names alone: both log values, which are not
    known yet, and TensorBoard keeps to the first table of a run.
    """
    from torch.utils.tensorboard.summary import hparams

    board.add_custom_scalars(build_layout(task, num_phases))
    main = MAIN_METRIC[task][0].removeprefix("val/")
    metrics = [f"{split}/{name}" for split in (BEST, "test") for name in ("loss", main)]
    make: Any = hparams
    for summary in make(params, dict.fromkeys(metrics, 0.0)):
        board.file_writer.add_summary(summary)


def write_projector(folder: Path, features: Tensor, rows: Sequence[Sequence[str]], sprites: Tensor | None) -> None:
    """Writes the files of TensorBoard's embedding projector.

    Args:
        folder: The folder of TensorBoard's events.
        features: ``(n, D)``.
        rows: A header, and the columns of each point.
        sprites: A small picture of each, uint8 ``(n, 3, S, S)``.
    """
    from tensorboard.plugins.projector import ProjectorConfig, visualize_embeddings

    place = Run(folder).projector
    place.mkdir(parents=True, exist_ok=True)
    np.savetxt(place / "features.tsv", features.float().numpy(), fmt="%.4g", delimiter="\t")
    lines = ["\t".join(re.sub(r"\s", " ", cell) for cell in row) for row in rows]
    (place / "images.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
    config = ProjectorConfig()
    points = config.embeddings.add(tensor_name="features of the validation images")
    points.tensor_path, points.metadata_path = (f"{place.name}/{name}.tsv" for name in ("features", "images"))
    points.tensor_shape.extend(features.shape)
    if sprites is not None:
        (place / "sprites.jpg").write_bytes(encode_picture(Image.fromarray(_tile(sprites)), has_photos=True))
        points.sprite.image_path = f"{place.name}/sprites.jpg"
        points.sprite.single_image_dim.extend(sprites.shape[2:])
    visualize_embeddings(str(folder), config)


def _tile(images: Tensor) -> Any:
    """A square of pictures, uint8, row by row, as the projector reads them."""
    side = int(np.ceil(np.sqrt(len(images))))
    blank = torch.zeros(side * side - len(images), *images.shape[1:], dtype=torch.uint8)
    grid = torch.cat([images, blank]).reshape(side, side, *images.shape[1:])
    return cast(Any, grid.permute(0, 3, 1, 4, 2).reshape(side * images.shape[2], side * images.shape[3], 3).numpy())
