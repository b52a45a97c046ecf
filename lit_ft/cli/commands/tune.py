"""``lit-ft tune``: a search for the options with which a run has the best validation metric."""

from __future__ import annotations

import gc
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from shutil import rmtree
from textwrap import indent
from typing import Any

import optuna
import torch
import yaml
from optuna.trial import Trial, TrialState

from lit_ft.assets import replace_atomically
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.config.resumed_run import describe_command
from lit_ft.cli.failures import interruption, raise_user_errors
from lit_ft.cli.search import Search, check_space, dump_config, read_search, refuse_other_study
from lit_ft.cli.trial import TrialSetting, config_args, run_trial
from lit_ft.console import format_duration, format_path, format_value, rank_zero_print
from lit_ft.errors import UserError, find_user_packages
from lit_ft.tuning.report import (
    TrialRow,
    format_csv,
    format_params,
    format_shared,
    format_trials,
    list_rows,
    render_trials,
    sort_by_value,
)
from lit_ft.tuning.storage import STORAGE_ERRORS, refuse_lost_storage
from lit_ft.tuning.study import (
    REASON,
    begin_trial,
    build_distributions,
    hold_study,
    list_counted,
    open_study,
    quiet_optuna,
    release_trial,
    requeue,
)

LINGER_SECONDS = 10.0
"""How long the workers of a process that was killed may hold its locks."""


@dataclass(frozen=True)
class Tuning:
    """What a search has found.

    Args:
        folder: The folder of the study.
        monitor: The validation metric that was searched by.
        best: The best trial, if one is complete.
        config: The config of that trial, for `lit-ft finetune`.
        trials: All trials, of all processes.
    """

    folder: Path
    monitor: str
    best: TrialRow | None
    config: Path | None
    trials: list[TrialRow] = field(repr=False)


def tune(cli: ConfigCLI) -> Tuning:
    """Searches as a config says, until there are as many trials as it wants.

    Raises:
        UserError: If the config is refused, or no trial could be completed.
        KeyboardInterrupt: If a signal ended it; the same command goes on.
    """
    with raise_user_errors(find_user_packages(cli.config.as_dict())):
        search = read_search(cli)
        is_local = search.config.storage is None
        if not (is_local and (search.folder / "journal.log").is_file()):
            check_space(search)
    with quiet_optuna(), refuse_lost_storage(search.config, advice="; to go on: the same command, once it can be"):
        study = _open(search)
        rank_zero_print(_format_start(search, study))
        try:
            _run_trials(cli, search, study)
            _write(cli, search, study)  # with the last trials of machines that have another folder
            return _finish(search, study)
        except KeyboardInterrupt as error:
            raise interruption(error, lambda number: _describe_end(search, study, number)) from None


def _open(search: Search) -> optuna.Study:
    """The study, begun with the options of the search or with the same ones."""
    max_epochs = search.base["trainer"]["max_epochs"]
    study = open_study(search.folder, search.config, search.space, search.mode, search.seed, max_epochs)
    with hold_study(search.folder):
        if saved := study.user_attrs.get("settings"):
            refuse_other_study(search, saved)
        else:
            study.set_user_attr("settings", search.settings)
    return study


def _run_trials(cli: ConfigCLI, search: Search, study: optuna.Study) -> None:
    """Runs trials until there are enough, and writes what is known after each."""
    command = describe_command(cli.command, cli.args)
    setting = TrialSetting(
        base=search.trial_config,
        command=command,
        monitor=search.monitor,
        features=search.features,
        describe_end=lambda number: _describe_end(search, study, number),
    )
    distributions = build_distributions(search.space)
    limit, is_local = search.num_trials, search.config.storage is None
    began = time.monotonic()
    while True:
        with refuse_lost_storage(search.config, OSError):
            begun = begin_trial(study, search.folder, distributions, limit, is_local)
        if begun is None and _count_running(study) and time.monotonic() - began < LINGER_SECONDS:
            time.sleep(0.5)
            continue
        if begun is None:
            return
        (trial, lock), is_told = begun, True
        try:
            _run_trial(search, study, setting, trial)
        except STORAGE_ERRORS:
            is_told = False
            raise
        finally:
            release_trial(lock, is_told)
            gc.collect()  # the network of the trial, whose memory the next one needs
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        _write(cli, search, study)


def _run_trial(search: Search, study: optuna.Study, setting: TrialSetting, trial: Trial) -> None:
    num_begun = len(list_counted(study.get_trials(deepcopy=False)))
    rank_zero_print(f"Trial {trial.number}  {num_begun} of {search.num_trials}: {format_params(trial.params)}")
    try:
        value, is_pruned = run_trial(setting, trial, _values(search, trial.params))
    except KeyboardInterrupt:
        with hold_study(search.folder):
            requeue(study, trial)
        raise
    except STORAGE_ERRORS:  # none of the trial, which goes on with its run
        raise
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        trial.set_user_attr(REASON, f"{kind}{' '.join(str(error).split())}"[:300])
        study.tell(trial, state=TrialState.FAIL)
        raise
    if value is None or is_pruned:
        study.tell(trial, state=TrialState.FAIL if value is None else TrialState.PRUNED)
    else:
        study.tell(trial, value)
    rows = list_rows(study.get_trials(deepcopy=False))
    rank_zero_print(_format_end(rows[trial.number], search.monitor, _find_best(rows, search)))


def _values(search: Search, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options, of what a study has drawn."""
    return {name: search.space[name].value_of(drawn) for name, drawn in params.items()}


def _find_best(rows: Sequence[TrialRow], search: Search) -> TrialRow | None:
    return next((row for row in sort_by_value(rows, search.mode) if row.state == "complete"), None)


def _write(cli: ConfigCLI, search: Search, study: optuna.Study) -> None:
    """Writes the table and the page, and the config of the best trial if it is another one than before.

    One process at a time, so that what is there at the end has all trials.
    """
    with hold_study(search.folder):
        rows = list_rows(study.get_trials(deepcopy=False))
        title = f"{search.folder.name}: {len(rows)} trials"
        texts = {
            "trials.csv": format_csv(rows, search.monitor),
            "trials.html": render_trials(rows, title, search.monitor, search.mode),
        }
        best = _find_best(rows, search)
        if best is not None and not _has_config(search, best):
            texts[search.best_config.name] = _format_config(cli, search, best)
        for name, text in texts.items():
            with replace_atomically(search.folder / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8", errors="surrogateescape")


def _has_config(search: Search, best: TrialRow) -> bool:
    try:
        text = search.best_config.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return False
    return text.startswith(f"# {_title(search, best)}\n")


def _title(search: Search, best: TrialRow) -> str:
    return f"Trial {best.number} of {search.folder.name}: {search.monitor} {_format(best.value)}"


def _format_config(cli: ConfigCLI, search: Search, best: TrialRow) -> str:
    """The whole config of a trial, with its figures."""
    parsed = cli.parser.parse_args(config_args(search.base, _values(search, best.params)))
    header = [
        _title(search, best),
        format_params(best.params),
        "",
        f"  {_suggest(search)}",
    ]
    comments = "\n".join(f"# {line}".rstrip() for line in header)
    return f"{comments}\n{yaml.safe_dump(dump_config(cli, parsed), sort_keys=False, width=120)}"


def _suggest(search: Search) -> str:
    return f"lit-ft finetune --config {quote(str(format_path(search.best_config)))}"


def _finish(search: Search, study: optuna.Study) -> Tuning:
    """Prints all trials and what to do with the best, and removes the features that they shared."""
    trials = study.get_trials(deepcopy=False)
    rows = list_rows(trials)
    rank_zero_print(f"\nTrials\n{indent(format_trials(rows, search.monitor, search.mode), '  ')}\n")
    if num_running := _count_running(study):
        rank_zero_print(f"Running     {num_running} in other processes, the last of which writes the files anew")
    elif all(trial.state.is_finished() for trial in trials):
        rmtree(search.features, ignore_errors=True)
    best = _find_best(rows, search)
    if best is None and not num_running:
        note = next((f", the last one as {row.note}" for row in reversed(rows) if row.state == "failed"), "")
        raise UserError(f"no trial was completed{note}; {format_path(search.folder / 'trials.csv')} has all")
    rank_zero_print(f"Study       {format_path(search.folder)}  (trials.csv, trials.html, a folder for each run)")
    if best is not None:
        line = f"trial {best.number}, {search.monitor} {_format(best.value)}"
        rank_zero_print(f"Best        {format_path(search.best_config)}  ({line})\nRun         {_suggest(search)}")
        if shared := format_shared(rows, best):
            rank_zero_print(f"Note        {shared}")
    config = search.best_config if best is not None else None
    return Tuning(search.folder, search.monitor, best, config, rows)


def _count_running(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))


def _format_start(search: Search, study: optuna.Study) -> str:
    num_done = sum(trial.state.is_finished() for trial in list_counted(study.get_trials(deepcopy=False)))
    before = f", {num_done} done before" if num_done else ""
    best = "greatest" if search.mode == "max" else "least"
    names = ", ".join(search.space)
    is_all = search.num_trials < search.config.trials
    all_of = f", one of each combination, and not {search.config.trials}" if is_all else ""
    return f"Study  {search.num_trials} trials{all_of}{before}, for the {best} {search.monitor} by {names}"


def _format_end(row: TrialRow, monitor: str, best: TrialRow | None) -> str:
    after = f" after {row.epochs} epoch{'s' * (row.epochs != 1)}" if row.epochs is not None else ""
    value = f": {monitor} {_format(row.value)}" if row.value is not None else f": {row.note}" * bool(row.note)
    so_far = "" if best is None else f"; best so far {_format(best.value)}, trial {best.number}"
    return f"Trial {row.number}  {row.state}{after}, {format_duration(row.seconds or 0.0)}{value}{so_far}"


def _describe_end(search: Search, study: optuna.Study, number: int) -> str:
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    num_done = sum(
        trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in study.get_trials(deepcopy=False)
    )
    return f"interrupted{by} after {num_done} of {search.num_trials} trials; to go on: the same command"


def _format(value: float | None) -> str:
    return "" if value is None else format_value(value)
