"""Decides the command line: LightningCLI over `FineTuneModule`, with ``finetune`` as the main job."""

from __future__ import annotations

import logging
import shlex
import sys
import textwrap
import warnings
from argparse import ArgumentError
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace, set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ft.assets import data_root, is_offline
from lit_ft.backbones.build import input_spec
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.cli.commands import COMMANDS
from lit_ft.cli.download import download, must_fetch, read_before_fetching, refuse_missing, same_command
from lit_ft.cli.messages import class_names, class_options, explain, raise_again, told_in_one_line
from lit_ft.cli.saved_data import add_saved_data
from lit_ft.cli.threads import quiet_threads
from lit_ft.compat import is_from_restoring_checkpoint
from lit_ft.console import format_path
from lit_ft.data.checks import check, tell_check
from lit_ft.data.modules.photos import PhotoDataModule
from lit_ft.data.streaming.convert import convert
from lit_ft.errors import (
    UserError,
    find_full_disk,
    find_user_error,
    find_user_packages,
    for_command_line,
    is_from_user_code,
    printable,
    unknown,
)
from lit_ft.evaluation.predictions import PredictionWriter
from lit_ft.evaluation.tensorboard import RunReport
from lit_ft.features.cache import FeatureCache
from lit_ft.model.checkpoints import hyper_parameters, refuse_other_model, saved_options
from lit_ft.model.module import FineTuneModule
from lit_ft.optim.optimizers import WarmupCosine  # noqa: F401 - likewise
from lit_ft.runs import Run, begin_run, find_checkpoint, find_run, find_run_of_checkpoint, format_intact_checkpoints
from lit_ft.tasks.task import METRICS
from lit_ft.training.early_stopping import EarlyStopping
from lit_ft.training.history import HistoryWriter
from lit_ft.training.progress import build_progress_bar
from lit_ft.training.run_options import refuse_other_options, run_options
from lit_ft.training.trainer import CHECKPOINT, NOISE, TRAINER, SaveConfig, Trainer, tell
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.preconditions import refuse_unknown_names

EVALUATIONS = ("validate", "test", "predict")
_WITHOUT_TRAINER = ("check", "download", "convert")


class FineTuneCLI(LightningCLI):
    """LightningCLI with named callbacks, a folder a run, and classes and images that follow from data and model."""

    exit_code = 0
    _run: Run | None = None
    _logger: Any = None
    _monitoring: dict[str, Namespace | None]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, ``finetune``, ``plan``, ``check``, ``download`` and ``convert``."""
        both: set[str] = {"model", "datamodule"}
        own = {"finetune": both, "plan": both, **{command: set() for command in _WITHOUT_TRAINER}}
        return {**own, **LightningCLI.subcommands()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the name of the run, the named callbacks, and optimizer and schedule."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="Runs go to logs/NAME; null takes the name of the last config.",
        )
        for key, callback, default in (
            ("unfreeze", GradualUnfreezing, {}),
            ("feature_cache", FeatureCache, {}),
            ("checkpoint", ModelCheckpoint, CHECKPOINT),
            ("early_stopping", EarlyStopping, None),
            ("report", RunReport, {}),
            ("predictions", PredictionWriter, {}),
        ):
            parser.add_lightning_class_args(callback, key, subclass_mode=True, required=False)
            if default is not None:
                path = f"{callback.__module__}.{callback.__qualname__}"
                parser.set_defaults({key: {"class_path": path, "init_args": default}})
        for key, bases, skip in (
            ("optimizer", (Optimizer,), {"params", "lr"}),
            ("lr_scheduler", LRSchedulerTypeTuple, {"optimizer", "total_steps", "first_step", "max_lr", "base_lr"}),
        ):
            parser.add_subclass_arguments(bases, key, instantiate=False, fail_untyped=False, required=False, skip=skip)
            parser.link_arguments(key, f"model.init_args.{key}", compute_fn=_plain)
        parser.set_defaults(
            {
                "model": {"class_path": "lit_ft.model.module.FineTuneModule", "init_args": {"backbone": "mnist_cnn"}},
                "lr_scheduler": {"class_path": "lit_ft.optim.WarmupCosine"},
            }
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Makes the parser of a command; of one that was not asked for, just what lists it: all would take long."""
        asked = set(sys.argv) & set(self.subcommands())
        if not asked or subcommand in asked:
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        return self.init_parser(**kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and tells a mistake with the nearest valid choice."""
        try:
            given = add_saved_data(sys.argv[1:]) if args is None else args
            if isinstance(given, list):  # by the parser itself, as Lightning warns of arguments that it is given
                self.config = parser.parse_args(given)
            else:
                super().parse_arguments(parser, given)
        except ArgumentError as error:
            if is_from_user_code(error):  # such as a module with a fault, which could not be imported
                raise
            command = next((arg for arg in sys.argv if arg in self._subcommand_parsers), "fit")
            options = [str(action.dest) for action in self._subcommand_parsers[command]._actions]
            named = {"model": FineTuneModule, "unfreeze": GradualUnfreezing, "checkpoint": ModelCheckpoint}
            for key, cls in named.items():
                options += [f"{key}.{option}" for option in class_options(cls)]
            bases = {"model": FineTuneModule, "data": L.LightningDataModule}
            bases |= {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
            bases |= {"trainer.logger": Logger, "trainer.callbacks": Callback}
            classes = {key: class_names(base) for key, base in bases.items()}
            raise explain(str(error), options, classes, command) from error

    def _add_instantiators(self) -> None:
        """Does nothing: Lightning would put its own hyperparameters in the place of the module's."""

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would lay a checkpoint's options over those that the user gives to a new fit."""

    def before_instantiate_classes(self) -> None:
        """Settles what follows from the rest of the config: the name, the monitored metric, a checkpoint's model."""
        config = self.config[self.subcommand]
        config["name"] = config["name"] or _name(config)
        if config.get("ckpt_path") in ("best", "last"):
            folder = f"{config['trainer']['default_root_dir']}/{config['name']}"
            config["ckpt_path"] = find_checkpoint(folder, config["ckpt_path"], config["config"] or [])
        if self.subcommand in EVALUATIONS:
            files = config["config"] or []
            root = config["trainer"]["default_root_dir"]
            hparams = hyper_parameters(config["ckpt_path"], self.subcommand, root, files)
            known = config["model"]["init_args"]
            refuse_other_model(_plain(known), hparams, sys.argv[1:], files)
            # What only a fit needs stays the command's own: jsonargparse would import it where it saves the config.
            taken = {key: hparams[key] for key in hparams if key in known and key not in ("optimizer", "lr_scheduler")}
            refuse_foreign(taken, _plain(known))
            known.update(Namespace(taken | ({"weights": None} if "weights" in taken else {})))
            config.update(Namespace(checkpoint=None, early_stopping=None, unfreeze=None, feature_cache=None))
        if config["data"] is None:
            config["data"] = _default_data(str(self.subcommand), config.get("ckpt_path"))
        options = config["data"].get("init_args") or {}
        if "task" in options and options["task"] is None:
            options["task"] = config["model"]["init_args"].get("task")
        if self.subcommand in _WITHOUT_TRAINER:
            return
        if config["checkpoint"] is None or config["trainer"]["enable_checkpointing"] is False:
            config["checkpoint"], config["trainer"]["enable_checkpointing"] = None, False
        if self.subcommand == "plan":
            self._refuse_logger(config["trainer"]["logger"])
            _without_effects(config)
            self.save_config_callback = None
        parser = self._parser(self.subcommand)
        parser.callback_keys = [key for key in parser.callback_keys if config[key] is not None]

    def _refuse_logger(self, logger: Any) -> None:
        """Makes a logger that a plan does not use, as a fit would be refused where it cannot be made."""
        with self._told_in_one_line():
            self._parser("plan").instantiate(Namespace(trainer=Namespace(logger=logger)), instantiate_groups=False)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes the trainer, with a folder of the run's own for whatever it writes."""
        config = self.config[self.subcommand]
        for key, callback in self._monitoring.items():
            config[key] = callback
            if callback is not None:
                _settle_monitor(key, callback["init_args"], self.model)
                made = self._parser(self.subcommand).instantiate(Namespace({key: callback}), instantiate_groups=False)
                self.config_init[self.subcommand][key] = made[key]
        if self.subcommand != "plan":
            config["trainer"]["logger"] = self._logger
            if not config["trainer"]["fast_dev_run"]:
                kwargs["logger"] = self._begin_run(config)
        try:
            trainer: Any = super().instantiate_trainer(**kwargs)
        except BaseException:
            if self._run is not None:
                self._run.release()
            raise
        trainer.run = self._run
        for callback in trainer.checkpoint_callbacks:
            if callback.dirpath is None and self._run is not None:
                callback.dirpath = str(self._run.checkpoints)
        return cast(L.Trainer, trainer)

    def _begin_run(self, config: Namespace) -> Any:
        """Claims the run's folder, and makes the loggers that write there; the config keeps what was asked for."""
        folder = Path(config["trainer"]["default_root_dir"] or ".") / config["name"]
        given = self._logger
        if given in (None, True):
            options = Namespace(save_dir=str(folder.parent), name=folder.name, default_hp_metric=False)
            given = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=options)
        loggers = [logger.clone() for logger in (given if isinstance(given, list) else [given] if given else [])]
        self._run = begin_run(folder, loggers, config["ckpt_path"])
        if not loggers:
            return False
        return self._parser(self.subcommand).instantiate(Namespace(trainer=Namespace(logger=loggers)))["trainer"][
            "logger"
        ]

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        """Adds a progress bar where the user has none, and what a resume needs."""
        theirs = config["callbacks"] or []
        theirs = theirs if isinstance(theirs, list) else [theirs]
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in theirs):
            callbacks = [*callbacks, build_progress_bar()]
        if self.subcommand not in ("plan", "predict"):
            callbacks = [*callbacks, HistoryWriter()]
        if self.config[self.subcommand]["checkpoint"] is not None:
            # Of its own, as `save_last` writes only when there is a new best.
            last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
            callbacks = [*callbacks, last]
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; what these refuse is a mistake in their options."""
        with self._told_in_one_line():
            if self.subcommand in _WITHOUT_TRAINER:
                return
            if is_offline():
                command = same_command(sys.argv[1:], str(self.subcommand), "download")
                refuse_missing(self._model_options(), self._make_data(None, None), command)
            if self.subcommand not in EVALUATIONS and must_fetch(self._model_options()):
                read_before_fetching(self._make_data(None, None))
            config = self.config[self.subcommand]
            if self.subcommand != "plan":  # the trainer's loggers are made when their folder is known
                self._logger, config["trainer"]["logger"] = config["trainer"]["logger"], None
            # And what watches a metric when the model is made, which knows its own.
            self._monitoring = {key: config[key] for key in ("checkpoint", "early_stopping")}
            config.update(Namespace(dict.fromkeys(self._monitoring)))
            super().instantiate_classes()

    def _told_in_one_line(self, before_training: Callable[[], bool] = lambda: True) -> AbstractContextManager[None]:
        packages = find_user_packages(_plain(self.config))
        return told_in_one_line(before_training, MisconfigurationException, packages=packages)

    def _model_options(self) -> dict[str, Any]:
        return dict(_plain(self.config[self.subcommand]["model"]["init_args"]))

    def _make_data(self, default_root: Path | None, root: Path | None) -> Any:
        """The data module, apart from the one that is trained on; where it gets a folder, it fetches."""
        config = self.config[self.subcommand]["data"].clone()
        options = config["init_args"]
        if "root" in options and (root or (default_root and options["root"] is None)):
            options["root"] = str(root or default_root)
        if "download" in options and (root or default_root):
            options["download"] = True
        return self._parser(self.subcommand).instantiate(Namespace(data=config))["data"]

    def _download(self) -> None:
        if is_offline():
            raise UserError("--offline: lit-ft download fetches files; run it without --offline and LIT_FT_OFFLINE")
        folder = data_root(self.config["download"]["folder"])
        with self._told_in_one_line():
            download(self._model_options(), self._make_data, folder)
        command = same_command(sys.argv[1:], "download", "finetune")
        print(f"Run: LIT_FT_DATA={shlex.quote(str(folder))} {command} --offline")

    def _convert(self) -> None:
        data = self._make_data(None, None)
        if not isinstance(data, PhotoDataModule):
            raise UserError(f"--data: lit-ft convert takes photos in files, not {type(data).__name__}")
        with self._told_in_one_line():
            made = convert(data, self.config["convert"]["folder"])
        print(f"Train on it: --data StreamDataModule --data.root {printable(shlex.quote(str(made)))}")

    def _check(self) -> None:
        with self._told_in_one_line():
            self.exit_code = tell_check(check(self._make_data(None, None)), self.config["check"]["folder"])

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; what fails before the first step is a mistake of the set-up."""
        if subcommand == "download":
            return self._download()
        if subcommand == "check":
            return self._check()
        if subcommand == "convert":
            return self._convert()
        try:
            with self._told_in_one_line(lambda: self.trainer.global_step == 0):
                self._run_interruptibly(subcommand)
        except UserError as error:
            # TensorBoard could not close its file on a full disk.
            if self.trainer.global_step == 0 and self._run is not None and find_full_disk(error) is None:
                self._run.release(self.trainer.loggers)
            raise

    def _run_interruptibly(self, subcommand: str) -> None:
        try:
            with quiet_threads():
                super()._run_subcommand(subcommand)
        except SystemExit:
            if not self.trainer.interrupted:
                raise
            last = (find_run(self.trainer) or Run(Path())).last
            hint = f"; to go on: the same command with --ckpt_path {format_path(last)}" if last.is_file() else ""
            raise KeyboardInterrupt(f"interrupted{hint}") from None
        except Exception as error:
            if find_user_error(error) or is_from_user_code(error):
                raise
            full, path = find_full_disk(error), self.config[subcommand].get("ckpt_path")
            if full is None and path is not None and is_from_restoring_checkpoint(error):
                reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" …")
                fault = "it is damaged or of another program"
                told = str(error) if isinstance(error, MisconfigurationException) else f"{fault} ({reason})"
                raise UserError(f"--ckpt_path: {path} cannot be used: {told} (--debug shows where)") from error
            if full is None:
                raise
            # Not the trainer's own `log_dir`, which asks all ranks, of which just this one may have failed.
            run = self._run or Run(Path(self.trainer.default_root_dir))
            left = format_intact_checkpoints(run.checkpoints)
            raise UserError(f"{format_path(run.folder)}: cannot be written to ({full.strerror}); {left}") from error

    def before_finetune(self) -> None:
        """Refuses to resume from a checkpoint of another run."""
        self.before_fit()

    def before_fit(self) -> None:
        """Refuses to resume from a checkpoint of another run."""
        path = self.config[self.subcommand]["ckpt_path"]
        if path is None or path == "hpc":
            return
        hparams = hyper_parameters(path, str(self.subcommand), "")
        names = getattr(self.datamodule, "class_names", None)
        if names is not None and list(names) != (earlier := hparams.get("classes")):
            raise UserError(f"--ckpt_path: {path} is of a run with the classes {earlier}, not {list(names)}")
        then, now = ({f"model.{key}": value for key, value in model.items()} for model in (hparams, self.model.hparams))
        options = run_options(self.config[self.subcommand].as_dict())
        refuse_other_options(path, {**saved_options(path), **then}, {**now, **options})

    def after_finetune(self) -> None:
        """Tells where everything is."""
        tell(self.trainer, "finetune")

    def after_fit(self) -> None:
        """Tells where everything is."""
        tell(self.trainer, "fit")

    def after_predict(self) -> None:
        """Tells where the predictions are."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionWriter) and callback.path is not None:
                print(f"Predictions: {printable(str(callback.path))}")


def run() -> int:
    """Runs ``lit-ft`` with the arguments in ``sys.argv``, and gives the exit code.

    Raises:
        UserError: After a mistake in the arguments, the config, or what they name.
    """
    # Else a config or a checkpoint could have any class called, below a dict of options that may have any value.
    set_parsing_settings(instantiate_subclass_spec_in_any=False)
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = lambda message, *_, **__: (
        f"lit-ft: warning: {printable(for_command_line(str(message)), lines=True)}\n"
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    quiet = {"exit_on_error": False, "allow_abbrev": False}
    told = {command: {**quiet, "description": COMMANDS[command]} for command in FineTuneCLI.subcommands()}
    try:
        return FineTuneCLI(
            FineTuneModule,
            trainer_class=Trainer,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**quiet, "prog": "lit-ft", **told},
        ).exit_code
    except ArgumentError as error:
        if is_from_user_code(error):
            raise
        raise explain(str(error), [], {}) from error
    except Exception as error:
        if (mistake := find_user_error(error)) is not None:
            raise_again(mistake, error)
        raise


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"lit-ft: warning: {printable(for_command_line(str(message)), lines=True)}\n"


def _settle_monitor(key: str, options: Namespace, model: FineTuneModule) -> None:
    """Sets which metric is watched, and whether its least or its greatest value is best, where lit_ft logs it."""
    monitored = {f"val/{name}": mode for name, mode in METRICS[model.hparams["task"]].items()}
    options["monitor"] = options["monitor"] or model.main_metric[0]
    if options["monitor"] in monitored:
        options["mode"] = monitored[options["monitor"]]
    elif type(model) is FineTuneModule:  # one that is derived from it may log others
        raise unknown("metric", options["monitor"], monitored, f"--{key}.monitor")


def _default_data(command: str, ckpt_path: str | None) -> Namespace:
    """The data of a fit that was given none; no default of the parser, which would hand its options on to the next.

    Raises:
        UserError: If other commands are given none, as the images to try a fit with are not those that are meant.
    """
    if command not in (*EVALUATIONS, "check", "convert"):
        return Namespace(class_path="lit_ft.data.DigitsDataModule", init_args=Namespace())
    run = find_run_of_checkpoint(ckpt_path)
    hint = f", or --config {format_path(run.config)} for those of the run" if run else ""
    images = "predict" if command == "predict" else "root"
    raise UserError(
        f"--data: lit-ft {command} must be told which images; give --data ImageFolderDataModule --data.{images} FOLDER"
        f"{hint}"
    )


def _without_effects(config: Namespace) -> None:
    """Leaves of a config what its plan depends on: no weights, no files, and no other processor than this one."""
    model = config["model"]["init_args"]
    if "backbone" in model and "weights" in model:
        spec = InputConfig(**_plain(model["input"] or {})).applied_to(
            input_spec(_plain(model["backbone"]), model["weights"])
        )
        if model["weights"] is not None and not is_file_name(model["weights"]):  # what is published does fit
            model["weights"] = None
        model["input"] = Namespace({**asdict(spec), "mean": list(spec.mean), "std": list(spec.std)})
    refuse_unknown_names(config["trainer"])
    here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": None, "plugins": None}
    config["trainer"].update(Namespace({**here, "logger": False, "num_sanity_val_steps": 0}))
    config["report"] = Namespace(class_path="lit_ft.RunReport", init_args=Namespace())


def _plain(value: Any) -> Any:
    """A namespace as dicts."""
    return value.as_dict() if isinstance(value, Namespace) else value


def _name(config: Namespace) -> str:
    """The name of the last config file, by which runs are filed."""
    files = config.get("config") or []
    return Path(str(files[-1])).stem if files else "run"
