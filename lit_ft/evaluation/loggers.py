"""Scalars and pictures for the loggers of a trainer, of whatever kind these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

_Write = Callable[[str, Image.Image, int, bool], None]


def find_board(trainer: L.Trainer) -> Any:
    """The writer of the TensorBoard logger on the first process, or ``None``."""
    if not trainer.is_global_zero:
        return None
    return next((log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)), None)


def log_scalars(trainer: L.Trainer, values: Mapping[str, float], step: int) -> None:
    """Logs scalars by Lightning's interface, which all loggers have."""
    for logger in trainer.loggers if trainer.is_global_zero and values else ():
        logger.log_metrics(dict(values), step)


def encode_picture(picture: Image.Image, has_photos: bool) -> bytes:
    """A picture in three colours as a file: with photos a JPEG, which takes a tenth of the time of a PNG."""
    data = BytesIO()
    if has_photos:
        picture.save(data, "JPEG", quality=85, subsampling=0)  # letters have fine edges
    else:
        picture.save(data, "PNG")
    return data.getvalue()


def log_picture(trainer: L.Trainer, key: str, picture: Image.Image, step: int, has_photos: bool = False) -> None:
    """Logs a picture in three colours to those loggers that take one."""
    for write in _find_writers(trainer):
        write(key, picture, step, has_photos)


def takes_pictures(trainer: L.Trainer) -> bool:
    """Whether a logger takes pictures, on the first process; to draw them in vain would take long."""
    return bool(_find_writers(trainer))


def _find_writers(trainer: L.Trainer) -> list[_Write]:
    """What writes a picture: of W&B by Lightning's interface, of TensorBoard and MLflow by their own.

    Lightning has none for all of them.
    """
    found = (_find_writer(logger) for logger in trainer.loggers) if trainer.is_global_zero else ()
    return [write for write in found if write is not None]


def _find_writer(logger: Any) -> _Write | None:
    if hasattr(logger, "log_image"):
        return lambda key, picture, step, _: logger.log_image(key, [np.array(picture)], step)
    if isinstance(logger, TensorBoardLogger):
        return lambda key, picture, step, has_photos: _add_picture(logger.experiment, key, picture, step, has_photos)
    if hasattr(logger.experiment, "log_image"):
        return lambda key, picture, step, _: logger.experiment.log_image(
            logger.run_id, np.array(picture), key=key, step=step
        )
    return None


def _add_picture(board: Any, key: str, picture: Image.Image, step: int, has_photos: bool) -> None:
    """Adds a picture to TensorBoard, encoded as suits it; torch's ``add_image`` makes a PNG of any."""
    if board.file_writer is None:  # closed at the end of the fit; torch's own methods open it again
        board.add_image(key, np.array(picture), step, dataformats="HWC")
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    encoded = encode_picture(picture, has_photos)
    image = Summary.Image(width=picture.width, height=picture.height, colorspace=3, encoded_image_string=encoded)
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag=key, image=image)]), step)
