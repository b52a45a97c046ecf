"""The commands of the trainer: ``finetune``, ``plan``, and those of Lightning."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser

from lit_ft.assets import is_offline, replace_atomically
from lit_ft.cli.commands import EVALUATIONS
from lit_ft.cli.commands.download import read_before_fetching, refuse_missing
from lit_ft.cli.config.defaults import as_plain, count_folds, remove_effects, settle_monitor, take_first_fold
from lit_ft.cli.config.parser import ConfigCLI
from lit_ft.cli.config.resumed_run import describe_command, find_earlier_run, refuse_other_run
from lit_ft.cli.config.saved import SaveConfig
from lit_ft.cli.failures import (
    describe_interruption,
    explain_failure,
    format_rank,
    interruption,
    locate_failure,
    raise_user_errors,
)
from lit_ft.cli.process import quiet_threads
from lit_ft.cli.summary import print_first_fold, print_summary
from lit_ft.console import format_path, rank_zero_print
from lit_ft.errors import UserError, find_full_disk, find_user_packages, printable, refuse_unwritable
from lit_ft.evaluation.evaluation_log import EvaluationLog
from lit_ft.evaluation.predictions import PredictionWriter
from lit_ft.evaluation.report import render_report
from lit_ft.evaluation.results import ResultWriter
from lit_ft.evaluation.tensorboard import BoardLogger
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run
from lit_ft.training.claim import begin_run, is_first_process
from lit_ft.training.history import HistoryWriter
from lit_ft.training.launch import is_restarted
from lit_ft.training.preemption import EndByBatch
from lit_ft.training.progress import build_progress_bar
from lit_ft.training.resume import RESTART_SECONDS, find_intact_checkpoint, lock_run, write_job
from lit_ft.training.selected import report_selected
from lit_ft.training.selection import select_best
from lit_ft.training.signals import Interrupted, current_watch
from lit_ft.training.time_budget import TimeBudget
from lit_ft.training.trainer import Trainer, print_scores

_FITS = ("fit", "finetune")
_RESUME = "The folder of a run to resume; auto: the newest of that name, of this command if any, or else a new one."


class FineTuneCLI(ConfigCLI):
    """A command of the trainer, a method of `Trainer`, with a folder of its own for whatever the run writes."""

    run: Run | None = None
    num_folds: int | None = None  # of a cross-validation: nothing is made here, and each fold is a run of its own
    earlier: Run | None = None  # which it goes on with
    _lock: Any = None  # of its run

    def __init__(self, command: str, args: Sequence[str]) -> None:
        saved = None if command == "plan" else SaveConfig
        super().__init__(command, args, save_config_callback=saved)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the trainer's method."""
        super().add_arguments_to_parser(parser)
        objects = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "refit"}
        self._method_options = parser.add_method_arguments(Trainer, self.command, skip={*objects})
        if self.command in _FITS:
            parser.add_argument("--resume", type=str | None, default=None, help=_RESUME)

    def before_instantiate_classes(self) -> None:
        """Settles what follows from the rest of the config, and leaves out the callbacks that are switched off."""
        super().before_instantiate_classes()
        config = self.config
        self._takes_first_fold = take_first_fold(config, self.command)
        if self.command in _FITS and not config["trainer"]["fast_dev_run"]:
            with self._user_errors():
                self.num_folds = count_folds(config, self.command)
                self.find_earlier()
        if self.command == "plan":
            with self._user_errors():
                self.make(trainer=Namespace(logger=config["trainer"]["logger"]))  # which the plan does not use
            remove_effects(config)
        self.parser.callback_keys = [key for key in self.parser.callback_keys if config[key] is not None]

    def find_earlier(self) -> None:
        """Finds the run to go on with, and its checkpoint."""
        config, folder = self.config, self._runs_folder()
        self.earlier = find_earlier_run(config, folder, self.command_line(), self.num_folds is not None)
        self.take_checkpoint()
        if config["resume"] and config["ckpt_path"] is None and self.num_folds is None:
            if self.earlier is not None and config["resume"] != "auto":
                raise UserError(f"`resume`: {config['resume']} has no intact checkpoint; leave it out to start afresh")
            rank_zero_print(f"Resume  from the start, as no run in {format_path(folder)} has a checkpoint")

    def take_checkpoint(self) -> None:
        """Goes on from the newest checkpoint of the earlier run, if it has one."""
        if self.earlier is not None and (found := find_intact_checkpoint(self.earlier)):
            self.config["ckpt_path"] = found
            rank_zero_print(f"Resume  from {format_path(Path(found))}")

    def command_line(self) -> str:
        """The command with its options, by which a run is found again; those of resuming are none of them."""
        return describe_command(self.command, self.args)

    def _runs_folder(self) -> Path:
        return Path(self.config["trainer"]["default_root_dir"] or ".", self.config["name"])

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; what these refuse is an error in their options."""
        if self.num_folds is not None:
            return
        with self._user_errors():
            if is_offline():
                refuse_missing(self)
            if self.command not in EVALUATIONS:
                read_before_fetching(self)
            trainer = self.config["trainer"]
            # A plan has none. Others are made when their folder is known.
            self._logger, trainer["logger"] = trainer["logger"], False if self.command == "plan" else None
            # And what watches a metric when the model is made, which knows its own.
            self._monitoring = {key: self.config[key] for key in ("checkpoint", "early_stopping")}
            self.config.update(Namespace(dict.fromkeys(self._monitoring)))
            super(ConfigCLI, self).instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes the trainer and claims the folder of its run."""
        config = self.config
        for key, callback in self._monitoring.items():
            config[key] = callback
            if callback is not None:
                settle_monitor(key, callback["init_args"], self.model)
                self.config_init[key] = self.make(**{key: callback})[key]
        if self.command != "plan":
            config["trainer"]["logger"] = self._logger
        try:
            if self.command != "plan" and not config["trainer"]["fast_dev_run"]:
                loggers = self.begin(self._logger)
                if self._logger in (None, True):  # not by the parser, which would load all of TensorBoard
                    kwargs["logger"] = [BoardLogger(**vars(loggers[0].init_args))]
                else:
                    kwargs["logger"] = self.make(trainer=Namespace(logger=loggers or False))["trainer"]["logger"]
                # Where Lightning looks for what an earlier SLURM job has saved, which must be of this run.
                kwargs["default_root_dir"] = str(self.run.folder if self.run else self._runs_folder())
            self.trainer_defaults = {**self.trainer_defaults, "callbacks": self.further_callbacks()}
            trainer = cast(Trainer, super().instantiate_trainer(**kwargs))
        except BaseException:
            if self.run is not None:
                self.run.release()
            raise
        trainer.run = self.run
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None and self.run:
                callback.dirpath = str(self.run.checkpoints)
        return trainer

    def begin(self, given: Any) -> list[Any]:
        """Claims the run's folder, and gives the configs of loggers that write there, by those that are asked for."""
        folder = self._runs_folder()
        if given in (None, True):
            options = Namespace(save_dir=str(folder.parent), name=folder.name, default_hp_metric=False)
            given = Namespace(class_path=f"{BoardLogger.__module__}.BoardLogger", init_args=options)
        loggers = [logger.clone() for logger in (given if isinstance(given, list) else [given] if given else [])]
        self.run = begin_run(folder, loggers, self.config["ckpt_path"], self.earlier)
        if self.run is not None and self.run.claimed and self.command in _FITS:
            write_job(self.run, self.command_line())
        return loggers

    def further_callbacks(self) -> list[Callback]:
        """The history, a progress bar where the user has none, and the checkpoint to resume from."""
        config = self.config_init["trainer"]
        theirs = config["callbacks"] or []
        theirs = theirs if isinstance(theirs, list) else [theirs]
        further: list[Callback] = []
        if self.command not in ("plan", "predict"):
            further = [HistoryWriter(), ResultWriter(), EvaluationLog(), TimeBudget()]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in theirs):
            further.append(build_progress_bar())
        saves = self.config["checkpoint"] is not None
        if self.command in _FITS and (watch := current_watch()):
            further.append(EndByBatch(watch, saves))
        if saves:
            # Of its own, as `save_last` writes only when there is a new best.
            further.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False))
        return further

    def execute(self) -> None:
        """Runs the command and prints where results are; what fails before the first step is an error in the options.

        Raises:
            UserError: If the run cannot begin, or cannot be written.
            KeyboardInterrupt: If it was interrupted; the message has how to resume it.
        """
        if (watch := current_watch()) is not None:
            watch.describe = self.describe_end
        try:
            with self._user_errors(lambda: self.trainer.global_step == 0), quiet_threads(), self._failures():
                self._call_method()
                if self.command in _FITS:
                    report = self._write_report() if self.command == "finetune" else None
                    print_summary(self.trainer, self.command, report)
                for callback in cast(Any, self.trainer).callbacks:
                    if isinstance(callback, PredictionWriter) and callback.path is not None:
                        print(f"Predictions: {printable(str(callback.path))}")
        except UserError as error:
            # TensorBoard could not close its file on a full disk.
            if self.trainer.global_step == 0 and self.run is not None and find_full_disk(error) is None:
                self.run.release(self.trainer.loggers)
            if self.trainer.global_step == 0:  # later they may have more to say
                self._end_others(signal.SIGKILL)
            raise locate_failure(error, self._own_run(), self.trainer) from error
        except (SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, SystemExit) and not self.trainer.interrupted:
                raise
            self._end_others()
            raise interruption(error, self.describe_end) from None
        finally:
            if self._lock is not None:
                self._lock.release()

    def describe_end(self, number: int) -> str:
        """The line with which the run ends after a signal."""
        run = self._own_run() if self.command in _FITS else None
        return describe_interruption(number, run, format_rank(self.trainer))

    def _call_method(self) -> None:
        if self._takes_first_fold:
            print_first_fold(self.datamodule, self.trainer)
        options = {name: self.config_init[name] for name in self._method_options}
        if self.datamodule is not None:
            options["datamodule"] = self.datamodule
        if self.command == "finetune":
            options["refit"] = bool(self.config["refit"])
        if self.command in ("fit", "finetune"):
            cast(Trainer, self.trainer).refuse_lost_processes()
            self.refuse_other()
            if self.run is not None and is_first_process():  # now that it may train that of another command, too
                self._lock = lock_run(self.run, RESTART_SECONDS if is_restarted() else 0)
                self.note_job(self.run)
        quiet = {"verbose": False} if options.get("verbose") else {}
        found = getattr(self.trainer, self.command)(self.model, **{**options, **quiet})
        print_scores(found if quiet else ())
        if self.command == "fit":
            report_selected(self.trainer, self.model, select_best(self.trainer, self.model).share)

    def refuse_other(self) -> None:
        """Refuses to go on with a run of other options."""
        refuse_other_run(self.config, self.command, self.model, self.datamodule)

    def note_job(self, run: Run) -> None:
        """Notes in the folder of a run the command that trains it."""
        write_job(run, self.command_line())

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raises what a failure of the trainer, or of another process, comes to."""
        try:
            yield
        except Exception as error:
            watch = current_watch()
            if watch is not None and watch.received is not None:  # which also ended another process, or a worker
                raise Interrupted(watch.received, watch.describe(watch.received)) from error
            if failure := explain_failure(error, self.config.get("ckpt_path"), self._own_run(), self.trainer):
                raise failure from error
            raise

    def _own_run(self) -> Run:
        """The run as this process knows it: the trainer's ``log_dir`` asks all, of which some may have ended."""
        found = (one.run for one in cast(Any, self.trainer).callbacks if isinstance(one, EndByBatch) and one.run)
        return self.run or next(found, Run(Path(self.trainer.default_root_dir)))

    def _end_others(self, number: int = signal.SIGTERM) -> None:
        """Ends the processes that this one has started: no later collective of theirs is answered."""
        if (launcher := getattr(self.trainer.strategy, "launcher", None)) is not None:
            launcher.kill(number)

    def _write_report(self) -> Path | None:
        """Writes the page of the run, on the first process; where that fails, the training is done all the same."""
        if self.run is None or not self.trainer.is_global_zero or not self.run.config.is_file():
            return None
        try:
            with refuse_unwritable(self.run.report), replace_atomically(self.run.report) as unfinished:
                page = render_report(self.run, self.datamodule)
                unfinished.write_text(page, encoding="utf-8", errors="surrogateescape")
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            rank_zero_warn(f"no report was written ({reason}); lit-ft report {format_path(self.run.folder)} writes it")
            return None
        return self.run.report

    def _user_errors(self, before_training: Callable[[], bool] = lambda: True) -> AbstractContextManager[None]:
        return raise_user_errors(find_user_packages(as_plain(self.config)), before_training)
