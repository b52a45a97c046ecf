"""Scalars and pictures for the loggers of a trainer, of whatever kind these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from lit_ft.evaluation.figures import render

Pixels = NDArray[np.uint8]


def find_board(trainer: L.Trainer) -> Any:
    """The writer of the TensorBoard logger on the first process, or ``None``."""
    if not trainer.is_global_zero:
        return None
    return next((log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)


def log_scalars(trainer: L.Trainer, values: Mapping[str, float], step: int) -> None:
    """Logs scalars by Lightning's interface, which all loggers have."""
    for logger in trainer.loggers if trainer.is_global_zero and values else ():
        logger.log_metrics(dict(values), step)


def log_figure(trainer: L.Trainer, key: str, figure: Any, step: int) -> None:
    """Logs a picture to those loggers that take one."""
    if writers := _find_writers(trainer):
        pixels = render(figure)
        for write in writers:
            write(key, pixels, step)


def takes_figures(trainer: L.Trainer) -> bool:
    """Whether a logger takes pictures, on the first process; to draw them in vain would take long."""
    return bool(_find_writers(trainer))


def _find_writers(trainer: L.Trainer) -> list[Callable[[str, Pixels, int], None]]:
    """What writes a picture: of W&B by Lightning's interface, of TensorBoard and MLflow by their own.

    Lightning has none for all of them.
    """
    found = (_find_writer(logger) for logger in trainer.loggers) if trainer.is_global_zero else ()
    return [write for write in found if write is not None]


def _find_writer(logger: Any) -> Callable[[str, Pixels, int], None] | None:
    if hasattr(logger, "log_image"):
        return lambda key, pixels, step: logger.log_image(key, [pixels], step)
    if hasattr(logger.experiment, "add_image"):
        return lambda key, pixels, step: logger.experiment.add_image(key, pixels, step, dataformats="HWC")
    if hasattr(logger.experiment, "log_image"):
        return lambda key, pixels, step: logger.experiment.log_image(logger.run_id, pixels, key=key, step=step)
    return None
