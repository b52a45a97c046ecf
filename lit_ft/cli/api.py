"""Runs from Python: what ``lit-ft finetune`` does, with its result as objects."""

from __future__ import annotations

import inspect
import json
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lit_ft.cli.config.arguments import OF_ARRAYS, PHOTO_RECIPE
from lit_ft.cli.config.keywords import name_as_given, nest, settle_keywords
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.config.words import find_place
from lit_ft.cli.failures import quiet_command
from lit_ft.cli.fold_runs import execute
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.cli.process import ended_by_signals, restored_process, set_offline
from lit_ft.cli.run import TUNE_OPTIONS, search
from lit_ft.data.arrays.files import holds_arrays
from lit_ft.errors import UserError
from lit_ft.evaluation.fold_scores import FoldScores
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.model.hyperparameters import saved_arguments
from lit_ft.model.module import FineTuneModule
from lit_ft.recipes import find_recipe
from lit_ft.runs import find_best_callback
from lit_ft.training.history import EpochRow, read_history

if TYPE_CHECKING:
    from lit_ft.cli.commands.tune import Tuning


@dataclass(frozen=True, eq=False)
class Result:
    """What a run comes to.

    Args:
        metrics: The monitored metric of the best checkpoint, and the test metrics; of images that a refit was trained
            on, those of the model before it. Of a cross-validation the mean of each metric over the folds, its standard
            deviation (``val/acc_std``), the ends of its 95% interval (``val/acc_low``, ``val/acc_high``), and what it
            is over all images out of fold (``out_of_fold/acc``).
        history: A row an epoch, as in ``history.csv``: epoch, step, learning rates and metrics.
        folder: The folder of the run, if it has one.
        config: Its config.
        best: The best checkpoint; none of a cross-validation, of which each fold has one.
        last: The checkpoint to resume from, likewise.
        folds: The folders of the runs of a cross-validation, in the order of their folds; ``lit_ft.load`` loads the
            model of one.
    """

    metrics: dict[str, float]
    history: list[EpochRow] = field(repr=False)
    folder: Path | None
    config: Path | None
    best: Path | None
    last: Path | None
    folds: list[Path] = field(default_factory=list)
    _model: FineTuneModule | None = field(default=None, repr=False)

    @property
    def model(self) -> FineTuneModule:
        """The module of the best checkpoint, or without one of the last step, in eval mode.

        Raises:
            UserError: If it is a cross-validation, which has a model for each fold.
        """
        if self._model is None:
            raise UserError(
                "model: a cross-validation has one for each fold, which measure how good such a model is; "
                "lit_ft.load(result.folds[0]) loads the first, and a run without `data.folds` makes one of all images"
            )
        return self._model


def run(config: str | Path | Mapping[str, Any], **options: Any) -> Result:
    """Fine-tunes as a config says, and tests the best checkpoint.

    Args:
        config: The name of a recipe, the path of a config, or its content.
        **options: What is laid over it: sections of a config, options by their full names, or epochs, batch_size,
            image_size, folds and seed.

    Raises:
        UserError: If the config is wrong, or what it names.
        KeyboardInterrupt: If a signal, such as that of Ctrl-C, ended it; the message has how to resume it.

    Example:
        >>> import lit_ft
        >>> lit_ft.run("quickstart", model={"lr": 1e-3}, **{"trainer.max_epochs": 3})  # doctest: +SKIP
    """
    return _run([config], options)


def _run(configs: Sequence[str | Path | Mapping[str, Any]], options: Mapping[str, Any]) -> Result:
    """Runs configs, each of which is laid over those before, and the options over all."""
    args = _as_args(configs, options)
    with _command(options):
        with _parsing():
            cli = FineTuneCLI("finetune", args)
        scores = execute(cli)
    return _result(cli) if cli.num_folds is None else _folds_result(cli, cli.num_folds, scores)


def tune(config: str | Path | Mapping[str, Any], **options: Any) -> Tuning:
    """Searches for the options with which a run has the best validation metric, as lit-ft tune does.

    Needs ``lit_ft[tune]``. The same call goes on with a study that was interrupted, or joins it.

    Args:
        config: The name of a recipe, the path of a config, or its content.
        **options: What is laid over it, as for `run`, with the section tune: trials, space, pruner, least_epochs and
            storage.

    Raises:
        UserError: If the config is wrong, or no trial could be completed.
        KeyboardInterrupt: If a signal, such as that of Ctrl-C, ended it.

    Example:
        >>> import lit_ft
        >>> space = {"model.lr": {"log": [1e-5, 1e-2]}}
        >>> found = lit_ft.tune("quickstart", tune={"trials": 5, "space": space})  # doctest: +SKIP
        >>> lit_ft.run(found.config)  # doctest: +SKIP
    """
    args = _as_args([config], options)
    with _command(options):
        with _parsing():
            cli = ConfigCLI("tune", args, TUNE_OPTIONS)
        return search(cli)


def _as_args(configs: Sequence[str | Path | Mapping[str, Any]], options: Mapping[str, Any]) -> list[str]:
    """The options of a command, with configs and options from Python as configs."""
    args: list[str] = []
    for part in (*configs, settle_keywords(options)):
        if part:
            args += ["--config", json.dumps(nest(part), default=str) if isinstance(part, Mapping) else str(part)]
    return args


@contextmanager
def _command(options: Mapping[str, Any]) -> Iterator[None]:
    """Runs a command from Python, and leaves the process as it was."""
    with restored_process(), name_as_given(options), quiet_command(), ended_by_signals():
        set_offline()
        yield


@contextmanager
def _parsing() -> Iterator[None]:
    """Leaves out the parser's own tracebacks, many of them, which say less than the line."""
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, ArgumentError):
            raise error from None
        raise


def finetune(folder: str | Path, recipe: str | Path | Mapping[str, Any] | None = None, **options: Any) -> Result:
    """Fine-tunes on a folder of photos with one folder a class, or a file of arrays, and tests the best checkpoint.

    Args:
        folder: The folder, or a ``.npz`` file; or a folder with files of arrays.
        recipe: The name of a recipe, the path of a config, or its content; ``None`` takes image_folder, as
            lit-ft finetune does.
        **options: What is laid over it: sections of a config, options by their full names, or epochs, batch_size,
            image_size, folds and seed.

    Raises:
        UserError: If the folder or an option is wrong.

    Example:
        >>> import lit_ft
        >>> result = lit_ft.finetune("PHOTOS", "image_folder_gradual")  # doctest: +SKIP
        >>> result.metrics, result.best  # doctest: +SKIP
    """
    settle_keywords(options)  # of which one could be another argument of `run`
    if recipe is None and holds_arrays(find_place(str(folder))):
        recipe = nest({name.removeprefix("--"): value for name, value in OF_ARRAYS.items()})
        return _run([find_recipe(PHOTO_RECIPE), recipe], {**options, "data.root": folder})
    return run(find_recipe(PHOTO_RECIPE) if recipe is None else recipe, **options, **{"data.root": folder})


def _folds_result(cli: FineTuneCLI, num_folds: int, scores: FoldScores | None) -> Result:
    run = cli.run
    return Result(
        metrics=scores.flat() if scores else {},
        history=[],
        folder=run.folder if run else None,
        config=_existing(run.config) if run else None,
        best=None,
        last=None,
        folds=[run.fold(number).folder for number in range(1, num_folds + 1)] if run else [],
    )


def _result(cli: FineTuneCLI) -> Result:
    trainer = cast(Any, cli.trainer)
    chosen, run = find_best_callback(trainer), cli.run
    best = _existing(getattr(chosen, "best_model_path", ""))
    # Not those that Lightning has last, which may be of photos that a refit was trained on.
    metrics = dict(trainer.test_metrics)
    if best is not None and chosen.best_model_score is not None:
        metrics[chosen.monitor] = float(chosen.best_model_score)
    model: FineTuneModule = cli.model
    if best is not None:
        saved = saved_arguments(read_checkpoint(best), inspect.signature(type(model)).parameters)
        # It is this run's own, whose classes the user has named.
        given = model.not_held(FineTuneModule)
        given |= {key: saved[key] for key in ("backbone", "optimizer", "lr_scheduler") if key in saved}
        model = type(model).load_from_checkpoint(best, map_location="cpu", **given)
    return Result(
        metrics=metrics,
        history=read_history(run.history) if run else [],
        folder=run.folder if run else None,
        config=_existing(run.config) if run else None,
        best=best,
        last=_existing(run.last) if run else None,
        _model=model.eval(),
    )


def _existing(path: str | Path) -> Path | None:
    return Path(path) if str(path) and Path(path).is_file() else None
