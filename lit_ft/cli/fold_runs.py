"""Cross-validation: a run for each fold, one after the other in a process, below one folder, and what they come to."""

from __future__ import annotations

import gc
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from lit_ft.assets import replace_atomically
from lit_ft.cli.commands import METHOD_OPTIONS
from lit_ft.cli.config.defaults import as_plain
from lit_ft.cli.config.resumed_run import refuse_other_folds
from lit_ft.cli.failures import describe_interruption, interruption, raise_user_errors
from lit_ft.cli.lightning import FineTuneCLI
from lit_ft.console import format_path, rank_zero_print
from lit_ft.errors import UserError, find_user_packages
from lit_ft.evaluation.fold_scores import FoldScores, add_finished, finished_folds, summarise
from lit_ft.evaluation.out_of_fold import OutOfFoldWriter
from lit_ft.evaluation.report import render_report
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run
from lit_ft.training.claim import is_first_process
from lit_ft.training.launch import is_restarted
from lit_ft.training.resume import RESTART_SECONDS, lock_run, write_job


class FoldCLI(FineTuneCLI):
    """The run of one fold, as that of its command with ``data.fold`` would be, in a folder of the cross-validation.

    It has no refit, which would train on the images that it is measured on.

    Args:
        of: The cross-validation.
        number: The number of the fold, from 1.
        done: The run of a fold that was trained before this process.
    """

    def __init__(self, of: FineTuneCLI, number: int, done: Run | None) -> None:
        self._of = of
        self._number = number
        self._done = done
        super().__init__(of.command, [*of.args, "--data.fold", str(number)])

    def before_instantiate_classes(self) -> None:
        """Leaves the refit out."""
        super().before_instantiate_classes()
        self.config["refit"] = False

    def find_earlier(self) -> None:
        """Finds the folder of the fold, and its checkpoint, if it has one."""
        if self._of.run is not None:
            self.earlier = _claim_fold(self._of.run, self._number)
            if self.earlier != self._done:
                self.take_checkpoint()

    def further_callbacks(self) -> list[Callback]:
        """Those of any run, and one that writes the predictions of the fold."""
        return [*super().further_callbacks(), OutOfFoldWriter(self._number)]

    def refuse_other(self) -> None:
        """Refuses to go on with folds of other options or images."""
        super().refuse_other()
        if self._done is not None:
            config = self.config["data"].clone()
            config["init_args"]["fold"] = int(self._done.folder.name.rpartition("_")[2])
            data = self.make(data=config)["data"]
            data.trainer = self.trainer
            refuse_other_folds(self._done, self.config, self.model, data)

    def note_job(self, run: Run) -> None:
        """Notes the command of the fold in its folder, and that of all in theirs."""
        super().note_job(run)
        if run.whole is not None:
            write_job(run.whole, self._of.command_line())


def execute(cli: FineTuneCLI) -> FoldScores | None:
    """Runs a command; a cross-validation as a run for each fold, of which it gives the scores on the first process."""
    if cli.num_folds is None:
        cli.execute()
        return None
    with raise_user_errors(find_user_packages(as_plain(cli.config))):
        _begin(cli)
    whole, is_first = cli.run, is_first_process()
    lock = lock_run(whole, RESTART_SECONDS if is_restarted() else 0) if whole is not None and is_first else None
    try:
        _train_folds(cli, cli.num_folds)
        return _finish(whole, cli.num_folds) if whole is not None and is_first else None
    except UserError:
        if whole is not None:
            whole.release()
        raise
    except KeyboardInterrupt as error:
        first = (whole or Run(Path())).fold(1)
        raise interruption(error, lambda number: describe_interruption(number, first, "")) from None
    finally:
        if lock is not None:
            lock.release()


def _begin(cli: FineTuneCLI) -> None:
    """Claims the folder of a cross-validation, or finds that of the earlier one, and saves its config."""
    is_resumed = cli.earlier is not None
    cli.begin(cli.config["trainer"]["logger"])
    if cli.run is None or not is_first_process():
        return
    if cli.run.has_folds() and not is_resumed:
        raise UserError(
            f"`trainer.logger`: {format_path(cli.run.folder)}, which it names, has folds; to go on with them give "
            f"`resume` {format_path(cli.run.folder)}, else another version"
        )
    if cli.config["resume"] or is_resumed:
        place = format_path(cli.run.folder) if is_resumed else "the start, as no run of that name has folds"
        rank_zero_print(f"Resume  from {place}")
    if not cli.run.config.is_file():
        config = cli.config.clone()
        for key in METHOD_OPTIONS:
            config.pop(key, None)
        with replace_atomically(cli.run.config) as unfinished:
            cli.parser.save(config, unfinished, skip_none=False, multifile=False)


def _train_folds(cli: FineTuneCLI, num_folds: int) -> None:
    """Trains the folds that are not finished."""
    finished = finished_folds(cli.run) if cli.run is not None else []
    done = cli.run.fold(finished[0]) if cli.run is not None and finished else None
    if len(finished) == num_folds:  # no other will
        FoldCLI(cli, finished[0], done).refuse_other()
    if cli.config["refit"]:
        rank_zero_print("Refit   left out, as it would train on the fold that is held out")
    launcher: Any = None  # of the other processes, which train all folds
    for number in range(1, num_folds + 1):
        if number in finished:
            rank_zero_print(f"Fold    {number} of {num_folds} is finished")
            continue
        rank_zero_print(f"\nFold    {number} of {num_folds}")
        try:
            fold = FoldCLI(cli, number, done)
            fold.execute()
        except BaseException:
            if launcher is not None:
                launcher.kill(signal.SIGTERM)
            raise
        launcher = launcher or getattr(fold.trainer.strategy, "launcher", None)
        del fold  # so that the memory of its model is free before the next one is made
        gc.collect()
        done = None  # this process gives the others the same options
        if cli.run is not None and is_first_process():
            add_finished(cli.run, number)


def _claim_fold(whole: Run, number: int) -> Run:
    """The folder of a fold, which is made."""
    fold = whole.fold(number)
    try:
        fold.folder.mkdir()
    except FileExistsError:
        return fold
    except OSError as error:
        raise UserError(f"{fold.folder}: cannot be made ({error.strerror}); let {whole.folder} be written") from error
    return replace(fold, claimed=(fold.folder,))


def _finish(whole: Run, num_folds: int) -> FoldScores:
    """Writes and prints what the folds come to."""
    scores = summarise(whole, num_folds)
    lines = [f"Folds        {format_path(whole.fold(1).folder)} to {whole.fold(num_folds).folder.name}, each a run"]
    if whole.predictions.is_file():
        lines.append(f"Predictions  {format_path(whole.predictions)}")
    try:
        page = render_report(whole)
        with replace_atomically(whole.report) as unfinished:
            unfinished.write_text(page, encoding="utf-8", errors="surrogateescape")
        lines.append(f"Report       {format_path(whole.report)}")
    except Exception as error:  # the folds are trained all the same
        rank_zero_warn(f"no report was written ({' '.join(str(error).split())})")
    lines.append("One model    the same command without folds; with --refit true it is of all images")
    rank_zero_print(f"\n{scores.format()}\n\n" + "\n".join(lines))
    return scores
