"""The text at the end of a run: where everything is, and the commands that use it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from lit_ft.console import format_path, format_value
from lit_ft.errors import printable
from lit_ft.runs import Run, find_best_callback, find_run


def print_summary(trainer: Any, command: str) -> None:
    """Prints where everything of a finished run is, on the first process.

    Args:
        trainer: The trainer.
        command: ``fit``, after which there is still to test, or ``finetune``.
    """
    found = find_run(trainer)
    if not trainer.is_global_zero or found is None or trainer.fast_dev_run:
        return
    run = Run(format_path(found.folder))
    chosen = find_best_callback(trainer)
    best = getattr(chosen, "best_model_path", "")
    has_events = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
    lines = [f"Run folder   {run.folder}  (config.yaml, checkpoints{', TensorBoard events' if has_events else ''})"]
    if best:
        best, score = format_path(Path(best)), format_score(chosen.best_model_score)
        arguments = f"--config {run.config} --ckpt_path {best}"
        lines.append(f"Best model   {best}  ({chosen.monitor} {score})")
        lines.append(f"Predict      lit-ft predict {arguments}")
        if command == "fit":
            lines.append(f"Test         lit-ft test {arguments}")
    if has_events:
        lines.append(f"Watch        tensorboard --logdir {run.folder.parent}")
    print("\n" + "\n".join(map(printable, lines)))


def format_score(score: Any) -> str:
    """The score of the best checkpoint.

    It is unknown where a moved checkpoint is resumed after its last epoch, and not defined for r2 of one number.

    >>> format_score(0.5), format_score(None), format_score(float("nan"))
    ('0.5000', 'is not known', 'is not defined')
    """
    if score is None:
        return "is not known"
    return format_value(score) if math.isfinite(score) else "is not defined"
