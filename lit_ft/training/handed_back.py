"""The checkpoint that a run hands back: that of its best epoch, or another model in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_ft.model.checkpoint import read_checkpoint

SHARE = "share_fine_tuned"
"""Key of a checkpoint that is no epoch's: the share of the fine-tuned weights in it."""

REFITTED = "is_refitted"
"""Key of a checkpoint whose model was trained on the validation images, too."""

_OF_THE_FIT = "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state"
"""What no model needs that is handed back, and a fit cannot go on with where its weights are others; the last two of
Lightning's averages, which would take their place again."""


def hand_back(trainer: Any, path: str, content: Mapping[str, Any], share: float) -> None:
    """Saves a model as the best checkpoint of a run; that of the best epoch is kept beside it.

    Args:
        trainer: The trainer of the run.
        path: The path of the best checkpoint.
        content: A checkpoint, of which the state of the fit is left out.
        share: The share of the fine-tuned weights in it.
    """
    if Path(path).is_file() and not is_handed_back(read_checkpoint(path)):
        _keep(Path(path), _best_epoch(path))
    kept = {key: value for key, value in content.items() if key not in _OF_THE_FIT}
    trainer.strategy.checkpoint_io.save_checkpoint({**kept, SHARE: share}, path)


def take_best_epoch(path: str) -> dict[str, Any] | None:
    """The checkpoint of the best epoch, by the path of the best one; None where there is none.

    A run that was resumed after it had ended, or was killed as another model was saved, gets it back.
    """
    kept = _best_epoch(path)
    if kept.is_file() and (not Path(path).is_file() or is_handed_back(read_checkpoint(path))):
        kept.replace(path)
    found = read_checkpoint(path)
    if is_handed_back(found):
        return None
    kept.unlink(missing_ok=True)  # of an earlier fit, or less good
    return found


def is_handed_back(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is no epoch's, but what follows a fit has made of it."""
    return SHARE in checkpoint


def is_refitted(path: str) -> bool:
    """Whether the model of a checkpoint was trained on the validation images, too."""
    return REFITTED in read_checkpoint(path)


def _keep(path: Path, other: Path) -> None:
    """Lets a file be at another path, too, so that a kill leaves it at one of them at least."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copy2(path, other)


def _best_epoch(path: str) -> Path:
    """Where the checkpoint of the best epoch is, if another one is handed back."""
    return Path(path).with_name("best_epoch.ckpt")
