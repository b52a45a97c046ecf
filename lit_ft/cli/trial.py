"""A trial of a search: a run as ``lit-ft fit`` trains it, in the folder of the study."""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from optuna.trial import Trial

from lit_ft.cli.config.keywords import nest
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.console import progress_bar
from lit_ft.errors import UserError, plain, refuse_unwritable
from lit_ft.own_code import UserCodeError
from lit_ft.runs import Run, find_best_callback
from lit_ft.training.history import read_history
from lit_ft.training.metrics_file import read_entries
from lit_ft.training.resume import find_intact_checkpoint
from lit_ft.tuning.study import CHOSEN, EPOCHS, REASON, RUN
from lit_ft.tuning.watch import TrialWatch

OUTPUT = "output.txt"
"""The file in the folder of a trial's run that has what `lit-ft fit` would have printed."""

TRIAL_ERRORS = (UserError, torch.OutOfMemoryError, MemoryError)
"""What ends a trial, and not the search."""


@dataclass(frozen=True)
class TrialSetting:
    """What the trials of a process have in common.

    Args:
        base: The config, as plain values, that what is drawn is laid over.
        command: The command of the search.
        monitor: The metric.
        features: The folder of cached features that they share, unless the config names another one.
        describe_end: Gives the line with which the search ends after a signal.
        shown: The warnings that were shown; those of later trials are in their output alone.
    """

    base: Mapping[str, Any]
    command: str
    monitor: str
    features: Path
    describe_end: Callable[[int], str]
    shown: set[str] = field(default_factory=set)


class TrialCLI(FineTuneCLI):
    """``lit-ft fit`` for a trial.

    Args:
        setting: What all trials have in common.
        values: What was drawn for this one.
        earlier: The run of an interrupted trial, which it goes on with.
        watch: Reports to the study.
    """

    def __init__(
        self, setting: TrialSetting, values: Mapping[str, Any], earlier: Run | None, watch: TrialWatch
    ) -> None:
        self._setting, self._interrupted, self._watch = setting, earlier, watch
        super().__init__("fit", config_args(setting.base, values))

    def describe_end(self, number: int) -> str:
        """The line with which the search ends after a signal."""
        return self._setting.describe_end(number)

    def find_earlier(self) -> None:
        """Takes the run of an interrupted trial, and its checkpoint, if it has one."""
        self.earlier = self._interrupted
        if self._interrupted is not None:
            self.config["ckpt_path"] = find_intact_checkpoint(self._interrupted)

    def command_line(self) -> str:
        """The command of the search."""
        return self._setting.command

    def further_callbacks(self) -> list[Callback]:
        """Those of any run, and one that reports to the study; cached features are those of the search."""
        cache = self.config_init["feature_cache"]
        if cache is not None and cache.folder is None:  # not by the config, which stays that of an ordinary run
            cache.folder = self._setting.features
        return [*super().further_callbacks(), self._watch]


def config_args(*parts: Mapping[str, Any]) -> list[str]:
    """The options of a command with these configs, of which the last counts most."""
    return [arg for part in parts for arg in ("--config", json.dumps(nest(part)))]


def run_trial(setting: TrialSetting, trial: Trial, values: Mapping[str, Any]) -> tuple[float | None, bool]:
    """Trains a trial, and notes what the study keeps of it.

    Args:
        setting: What all trials have in common.
        trial: The trial.
        values: What was drawn, by the names of options.

    Returns:
        The metric of the model that the run hands back, or None where the trial failed; and whether it was pruned.
    """
    max_epochs = setting.base["trainer"]["max_epochs"]
    with progress_bar(f"Trial {trial.number}", max(0, max_epochs or 0), "epochs") as bar:

        def show(value: float) -> None:
            bar.set_postfix({setting.monitor: f"{value:.4f}"}, refresh=False)
            bar.update(1)

        watch, said = TrialWatch(trial, setting.monitor, show), io.StringIO()
        earlier = Run(Path(folder)) if (folder := trial.user_attrs.get(RUN)) and Path(folder).is_dir() else None
        run: Run | None = None
        try:
            with _quiet(said, setting.shown):
                cli = TrialCLI(setting, values, earlier, watch)
                if (run := cli.run) is not None:
                    trial.set_user_attr(RUN, str(run.folder))
                cli.execute()
            score = getattr(find_best_callback(cli.trainer), "best_model_score", None)
            if score is None or not math.isfinite(score):
                raise UserError(f"{setting.monitor} is not {'known' if score is None else 'defined'}")
            return float(score), watch.is_pruned
        except UserCodeError as error:  # a fault, which other trials have, too
            raise UserCodeError(_cut_resume(error.args[0]), error.trace) from error
        except TRIAL_ERRORS as error:
            trial.set_user_attr(REASON, describe_failure(error))
            return None, False
        finally:
            if run is not None and not run.folder.is_dir():  # as nothing came of it
                trial.set_user_attr(RUN, None)
            elif run is not None:
                with refuse_unwritable(run.folder / OUTPUT), (run.folder / OUTPUT).open("a", encoding="utf-8") as file:
                    file.write(said.getvalue())
                trial.set_user_attr(EPOCHS, len(read_history(run.history)))
                if (chosen := read_entries(run.metrics).get("selection", {}).get("chosen")) is not None:
                    trial.set_user_attr(CHOSEN, chosen)


def describe_failure(error: BaseException) -> str:
    """Why a trial failed, in one line, without how its run could be resumed.

    >>> describe_failure(UserError("`model.lr`: too high; to resume: the same command with --ckpt_path a.ckpt"))
    'model.lr: too high'
    """
    if isinstance(error, UserError):
        return _cut_resume(plain(" ".join(error.args[0].split())))
    return f"out of memory: {' '.join(str(error).split())}".removesuffix(": ")[:300]


def _cut_resume(line: str) -> str:
    return line.partition("; to resume: ")[0]


@contextmanager
def _quiet(said: io.StringIO, shown: set[str]) -> Iterator[None]:
    """Collects what is printed, and the warnings, of which it shows those that no trial has had before."""
    with redirect_stdout(said), warnings.catch_warnings():
        show = warnings.showwarning

        def show_once(message: Any, *args: Any, **options: Any) -> None:
            said.write(warnings.formatwarning(message, *args[:3]))
            if str(message) not in shown:
                shown.add(str(message))
                show(message, *args, **options)

        warnings.showwarning = show_once
        yield
