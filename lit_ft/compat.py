"""Private and undocumented APIs of other libraries, each with the reason for its use.

`tests/test_compat.py` fails when one of them changes upstream, and when another file uses one.
"""

from __future__ import annotations

import math
import os
import traceback
from pathlib import Path
from typing import Any

from lit_ft.errors import iterate_causes

# Lightning (2.5.0 to 2.6.6): the counts of its loops, in a checkpoint and in a trainer, decide where a run is resumed.
# It has no public way to set them.


def validate_first(checkpoint: dict[str, Any], trainer: Any) -> None:
    """Resumes with the validation of an epoch, where a checkpoint was written between its last step and that.

    Lightning would resume such a checkpoint with the next epoch: no best score, early stopping or plateau would know of
    this one. Instead the counts become those of a run which has completed the step and has begun the first batch of the
    validation. This is for one validation an epoch: with another ``val_check_interval`` all stays as Lightning does it.

    Args:
        checkpoint: The checkpoint that is resumed from; one of weights alone is left as it is.
        trainer: The trainer that resumes.
    """
    progress = checkpoint.get("loops", {}).get("fit_loop")
    if not progress:
        return
    batches = progress["epoch_loop.batch_progress"]
    # `on_train_batch_end` is called when a batch is processed and not yet completed.
    is_before_end = batches["is_last_batch"] and batches["total"]["completed"] == batches["total"]["processed"] - 1
    if not (is_before_end and _validates_after(checkpoint["epoch"], trainer)):
        return
    for count in ("total", "current"):
        batches[count]["completed"] = batches[count]["processed"]
    validation = progress["epoch_loop.val_loop.batch_progress"]
    done = validation["total"]["completed"]
    validation["total"].update(ready=done + 1, started=done + 1, processed=done)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)


def keep_last_batch(trainer: Any) -> None:
    """Ends an epoch of which the last batch was trained, also where it now has more or fewer batches.

    Lightning finds its end by the number of batches, and would train the images of the further ones once more.

    Args:
        trainer: The trainer of a fit, at its start.
    """
    batches, num_batches = trainer.fit_loop.epoch_loop.batch_progress, trainer.num_training_batches
    more = num_batches - batches.current.ready
    if batches.is_last_batch and math.isfinite(more):
        for name in ("ready", "started", "processed", "completed"):
            setattr(batches.current, name, getattr(batches.current, name) + more)


# Lightning (2.5.0 to 2.6.6): what its checkpoint callback believes of the paths in a checkpoint.


def forget_files_elsewhere(trainer: Any) -> None:
    """Removes from checkpoint callbacks the paths of earlier checkpoints that are outside of their folders.

    Lightning removes the last best checkpoint, with all that is below it, by the path that is in the present one. Its
    own check of where that is takes ``..`` for a folder, and passes all that has a protocol, also ``local://``.

    Args:
        trainer: The trainer of a fit, at its start.
    """
    for callback in trainer.checkpoint_callbacks:
        folder = str(callback.dirpath)
        for name in ("best_model_path", "last_model_path"):
            if not _is_within(str(getattr(callback, name, "")), folder):
                setattr(callback, name, "")
        ranked = (*getattr(callback, "best_k_models", ()), getattr(callback, "kth_best_model_path", ""))
        if not all(_is_within(str(path), folder) for path in ranked):
            callback.best_k_models, callback.kth_best_model_path = {}, ""


def _is_within(path: str, folder: str) -> bool:
    """Whether a path is within a folder, or a plain one, of which Lightning sees rightly whether it is."""
    if "://" in path or "::" in path:
        return path.startswith(f"{folder.rstrip('/')}/") and ".." not in path.split("/")
    return ".." not in Path(path).parts or Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))


# Lightning (2.5.0 to 2.6.6): an error while a checkpoint is restored has no class of its own.


def is_from_restoring_checkpoint(error: BaseException) -> bool:
    """Whether an exception was raised as Lightning restored the content of a checkpoint."""
    frames = [frame for cause in iterate_causes(error) for frame in traceback.extract_tb(cause.__traceback__)]
    places = [(Path(frame.filename).name, frame.name.lstrip("_")) for frame in frames]
    return any(file == "checkpoint_connector.py" and name.startswith("restore") for file, name in places)


def _validates_after(epoch: int, trainer: Any) -> bool:
    every = trainer.check_val_every_n_epoch
    whole_epoch = trainer.enable_validation and trainer.val_check_interval == 1
    return bool(whole_epoch and every is not None and (epoch + 1) % every == 0)
