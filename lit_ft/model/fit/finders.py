"""Lightning's finders of learning rate and batch size in a fit of `FineTuneModule`."""

from __future__ import annotations

from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder

from lit_ft.errors import UserError


def finders(trainer: L.Trainer) -> list[Callback]:
    """The callbacks of a trainer that find a learning rate or a batch size as a fit starts."""
    callbacks = cast(Any, trainer).callbacks
    return [callback for callback in callbacks if isinstance(callback, (BatchSizeFinder, LearningRateFinder))]


def refuse_on_resume(trainer: L.Trainer) -> None:
    """Refuses to look for other values in a run that is resumed; Lightning's finders would also lose its state.

    Raises:
        UserError: If a run is resumed with a finder.
    """
    if trainer.ckpt_path is not None and (found := finders(trainer)):
        names = " and ".join(type(callback).__name__ for callback in found)
        raise UserError(
            f"`trainer.callbacks`: {names} would find other values than those of the run that is resumed; leave "
            "it out, and give `model.lr` and `data.batch_size` as the run printed them"
        )


def format_found(module: Any, data: Any) -> str:
    """The values that were found, as options for a run without finders."""
    size = getattr(data, "batch_size", None)
    return f"Found  model.lr {module.hparams['lr']}" + (f"  data.batch_size {size}" if size else "")
