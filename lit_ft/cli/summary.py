"""What is printed at the end of a run: where everything is, and the commands that use it."""

from __future__ import annotations

import math
from pathlib import Path
from shlex import quote
from typing import Any

from lit_ft.cli.commands.download import read_if_there
from lit_ft.console import format_path, format_value, rank_zero_print
from lit_ft.errors import printable
from lit_ft.evaluation.loggers import find_board
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run, find_best_callback, find_run
from lit_ft.training.handed_back import is_refitted
from lit_ft.training.trainer import has_test_loader


def print_summary(trainer: Any, command: str, report: Path | None) -> None:
    """Prints where everything of a finished run is, and the commands that use it, on the first process."""
    found = find_run(trainer)
    if not trainer.is_global_zero or found is None or trainer.fast_dev_run:
        return
    run = Run(format_path(found.folder))
    chosen = find_best_callback(trainer)
    board = find_board(trainer)
    events = None if board is None else Path(board.get_logdir()).resolve()
    has_events = events == found.folder.resolve()
    lines = [f"Run folder   {run.folder}  (config.yaml, checkpoints{', TensorBoard events' if has_events else ''})"]
    if best := getattr(chosen, "best_model_path", ""):
        refit = "refit; before it " if is_refitted(best) else ""
        best = format_path(Path(best))
        arguments = f"--config {quote(str(run.config))} --ckpt_path {quote(str(best))}"
        lines.append(f"Best model   {best}  ({refit}{chosen.monitor} {format_score(chosen.best_model_score)})")
        model = trainer.lightning_module
        is_whole = type(model) is FineTuneModule and isinstance(model.hparams["backbone"], str)  # else with its config
        lines.append(f"Predict      lit-ft predict {f'{quote(str(best))} PHOTOS' if is_whole else arguments}")
        if command == "fit" and _has_test_images(trainer):
            lines.append(f"Test         lit-ft test {arguments}")
    if report is not None:
        lines.append(f"Report       {format_path(report)}")
    if events is not None:
        lines.append(f"Watch        tensorboard --logdir {quote(str(format_path(events.parent)))}")
    print("\n" + "\n".join(map(printable, lines)))


def _has_test_images(trainer: Any) -> bool:
    """Whether there is more to test on than the validation images, which lit_ft tests on where there are no others."""
    has_loader = has_test_loader(trainer.lightning_module, trainer.datamodule)
    return has_loader and getattr(trainer.datamodule, "tested", "test") == "test"


def format_score(score: Any) -> str:
    """The score of the best checkpoint.

    It is unknown where a moved checkpoint is resumed after its last epoch, and not defined for r2 of one number.

    >>> format_score(0.5), format_score(None), format_score(float("nan"))
    ('0.5000', 'is not known', 'is not defined')
    """
    if score is None:
        return "is not known"
    return format_value(score) if math.isfinite(score) else "is not defined"


def print_first_fold(data: Any, trainer: Any) -> None:
    """Prints that the first fold is shown for all, once its images have been read, which may refuse the folds."""
    data.trainer = trainer
    read_if_there(data)
    rank_zero_print(f"Fold  1 of {data.folds}, as the others are like it")
