"""Decides the command line: LightningCLI over `FineTuneModule`, with ``finetune`` as the main job."""

from __future__ import annotations

import logging
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any, cast

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lit_ft.data  # noqa: F401 - makes the short names of the data modules known
from lit_ft.callbacks import EarlyStopping, GradualUnfreezing, PredictionWriter, RunReport
from lit_ft.callbacks.progress import progress_bar
from lit_ft.checkpoints import hyper_parameters, newest
from lit_ft.errors import UserError, unknown
from lit_ft.explain import class_names, class_options, explain, mistake_behind, told_in_one_line
from lit_ft.module import FineTuneModule
from lit_ft.optim import WarmupCosine  # noqa: F401 - likewise
from lit_ft.tasks import MAIN_METRIC, METRICS

EVALUATIONS = ("validate", "test", "predict")

# What a checkpoint and a config must agree on for a run to be resumed.
_RESUMED = (
    "backbone", "pool", "input", "head", "task", "label_smoothing",
    "lr", "lr_decay", "optimizer", "lr_scheduler", "penalty",
)  # fmt: skip

# Said by libraries of things that are as they should be here.
_NOISE = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*`LeafSpec\(\)`.*",
    r".*treespec, LeafSpec.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
)


class Trainer(L.Trainer):
    """Lightning's trainer, with the main job as one call."""

    def finetune(self, model: L.LightningModule, datamodule: Any = None, ckpt_path: str | None = None) -> None:
        """Fits, then tests with the best checkpoint, then tells where everything is.

        Args:
            model: The module to fine-tune.
            datamodule: Its data.
            ckpt_path: Checkpoint of an interrupted run to go on from.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        best = getattr(self.checkpoint_callback, "best_model_path", "") or None
        if best is None and not cast(Any, self).fast_dev_run:
            rank_zero_warn("no epoch was validated and saved, so the last weights are tested")
        self.test(model, datamodule=datamodule, ckpt_path=best, verbose=True)


class SaveConfig(SaveConfigCallback):
    """Saves what any command can be given again, that is, without the options of this one command."""

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        config = config.clone()
        for key in ("ckpt_path", "weights_only", "verbose", "return_predictions"):
            config.pop(key, None)
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Saves, unless this is the folder of an earlier run, whose config stays what it was."""
        log_dir = trainer.log_dir  # asks all ranks
        self.already_saved |= trainer.strategy.broadcast((Path(log_dir or ".") / self.config_filename).is_file())
        super().setup(trainer, pl_module, stage)


class FineTuneCLI(LightningCLI):
    """LightningCLI with named callbacks, a folder a run, and classes and images that follow from data and model."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands and ``finetune``."""
        return {"finetune": {"model", "datamodule"}, **LightningCLI.subcommands()}

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
            ("lr_scheduler", LRSchedulerTypeTuple, {"optimizer", "total_steps", "max_lr"}),
        ):
            parser.add_subclass_arguments(bases, key, instantiate=False, fail_untyped=False, required=False, skip=skip)
            parser.link_arguments(key, f"model.init_args.{key}", compute_fn=_plain)
        parser.set_defaults(
            {
                "model": {"class_path": "lit_ft.module.FineTuneModule", "init_args": {"backbone": "mnist_cnn"}},
                "lr_scheduler": {"class_path": "lit_ft.optim.WarmupCosine"},
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and tells a mistake with the nearest valid choice."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            command = next((arg for arg in sys.argv if arg in self._subcommand_parsers), "fit")
            options = [str(action.dest) for action in self._subcommand_parsers[command]._actions]
            named = {"model": FineTuneModule, "unfreeze": GradualUnfreezing, "checkpoint": ModelCheckpoint}
            for key, cls in named.items():
                options += [f"{key}.{option}" for option in class_options(cls)]
            bases = {"model": FineTuneModule, "data": L.LightningDataModule}
            bases |= {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
            raise explain(str(error), options, {key: class_names(base) for key, base in bases.items()}) from error

    def _add_instantiators(self) -> None:
        """Does nothing: Lightning would put its own hyperparameters in the place of the module's."""

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would lay a checkpoint's options over those that the user gives to a new fit."""

    def before_instantiate_classes(self) -> None:
        """Settles what follows from the rest of the config: the name, the monitored metric, a checkpoint's model."""
        config = self.config[self.subcommand]
        config["name"] = config["name"] or _name(config)
        if config["data"] is None:
            # No default of the parser, which would hand options of one data module on to the next.
            config["data"] = Namespace(class_path="lit_ft.data.DigitsDataModule", init_args=Namespace())
        if config["ckpt_path"] in ("best", "last"):
            config["ckpt_path"] = newest(
                f"{config['trainer']['default_root_dir']}/{config['name']}", config["ckpt_path"]
            )
        if self.subcommand in EVALUATIONS:
            hparams = hyper_parameters(config["ckpt_path"], self.subcommand, config["trainer"]["default_root_dir"])
            known = config["model"]["init_args"]
            known.update(Namespace({key: hparams[key] for key in hparams if key in known}))
            config.update(Namespace(checkpoint=None, early_stopping=None, unfreeze=None))
        if config["checkpoint"] is None or config["trainer"]["enable_checkpointing"] is False:
            config["checkpoint"], config["trainer"]["enable_checkpointing"] = None, False
        elif config["checkpoint"]["init_args"]["monitor"] is None:
            config["checkpoint"]["init_args"]["monitor"] = MAIN_METRIC[config["model"]["init_args"]["task"]][0]
        for key in ("checkpoint", "early_stopping"):
            if config[key] is not None:
                _settle_mode(key, config[key]["init_args"], config["model"])
        parser = self._parser(self.subcommand)
        parser.callback_keys = [key for key in parser.callback_keys if config[key] is not None]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Makes the trainer, with TensorBoard in the run's own folder."""
        config = self.config[self.subcommand]
        if config["trainer"].get("logger") in (None, True):
            # Absolute, so that a resumed run finds its best score again, which is kept with the path.
            folder = Path(config["trainer"]["default_root_dir"]).resolve() / config["name"]
            version = None
            run = Path(config["ckpt_path"] or "").resolve().parent.parent
            if (run / "config.yaml").is_file():
                folder, version = run.parent, run.name  # what comes of a checkpoint goes to the run that wrote it
            kwargs["logger"] = TensorBoardLogger(
                folder.parent, name=folder.name, version=version, default_hp_metric=False
            )
        trainer: L.Trainer = super().instantiate_trainer(**kwargs)
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Any:
        """Adds a progress bar where the user has none, and what a resume needs."""
        theirs = config["callbacks"] or []
        if config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in theirs):
            callbacks = [*callbacks, progress_bar()]
        if self.config[self.subcommand]["checkpoint"] is not None:
            # Of its own, as `save_last` writes only when there is a new best.
            last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
            callbacks = [*callbacks, last]
        return super()._instantiate_trainer(config, callbacks)

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; what these refuse is a mistake in their options."""
        with told_in_one_line(lambda: True, MisconfigurationException):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; what fails before the first step is a mistake of the set-up."""
        with told_in_one_line(lambda: self.trainer.global_step == 0, MisconfigurationException):
            try:
                super()._run_subcommand(subcommand)
            except SystemExit:
                if not self.trainer.interrupted:
                    raise
                last = Path(self.trainer.log_dir or "") / "checkpoints" / "last.ckpt"
                hint = f"; to go on: the same command with --ckpt_path {_shown(last)}" if last.is_file() else ""
                raise KeyboardInterrupt(f"interrupted{hint}") from None

    def before_finetune(self) -> None:
        """Refuses to resume from a checkpoint of another model."""
        self.before_fit()

    def before_fit(self) -> None:
        """Refuses to resume from a checkpoint of another model."""
        path = self.config[self.subcommand]["ckpt_path"]
        if path is None or path == "hpc":
            return
        hparams = hyper_parameters(path, str(self.subcommand), "")
        names = getattr(self.datamodule, "class_names", None)
        if names is not None and list(names) != hparams["classes"]:
            raise UserError(f"--ckpt_path: {path} is of a run with the classes {hparams['classes']}, not {list(names)}")
        for key in _RESUMED:
            if hparams.get(key) != self.model.hparams[key]:
                raise UserError(
                    f"--ckpt_path: {path} is of a run with --model.{key} {hparams.get(key)}, but this one has "
                    f"{self.model.hparams[key]}; give the same, or start from its weights with --model.weights {path}"
                )

    def after_finetune(self) -> None:
        """Tells where everything is."""
        self._tell("finetune")

    def after_fit(self) -> None:
        """Tells where everything is."""
        self._tell("fit")

    def after_predict(self) -> None:
        """Tells where the predictions are."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PredictionWriter) and callback.path is not None:
                print(f"Predictions: {callback.path}")

    def _tell(self, command: str) -> None:
        log_dir = self.trainer.log_dir  # asks all ranks
        if not self.trainer.is_global_zero or log_dir is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        run = _shown(Path(log_dir))
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        lines = [f"Run folder   {run}  (config.yaml, checkpoints, TensorBoard events)"]
        if best:
            score = self.trainer.checkpoint_callback.best_model_score  # type: ignore[union-attr]
            monitor = self.trainer.checkpoint_callback.monitor  # type: ignore[union-attr]
            lines.append(f"Best model   {_shown(Path(best))}  ({monitor} {float(score):.4f})")
            arguments = f"--config {run / 'config.yaml'} --ckpt_path {_shown(Path(best))}"
            lines.append(f"Predict      lit-ft predict {arguments}")
            if command == "fit":
                lines.append(f"Test         lit-ft test {arguments}")
        lines.append(f"Watch        tensorboard --logdir {run.parent}")
        print("\n" + "\n".join(lines))


CHECKPOINT: dict[str, Any] = {
    "filename": "best",
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}

TRAINER: dict[str, Any] = {
    "max_epochs": 10,
    "default_root_dir": "logs",
    "enable_model_summary": False,  # the plan tells it
    "log_every_n_steps": 10,
}


def run() -> None:
    """Runs ``lit-ft`` with the arguments in ``sys.argv``.

    Raises:
        UserError: After a mistake in the arguments, the config, or what they name.
    """
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = lambda message, *_, **__: f"lit-ft: warning: {message}\n"
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    quiet = {"exit_on_error": False}
    about = {"prog": "lit-ft", "description": "Fine-tune pretrained image models, stage by stage."}
    try:
        FineTuneCLI(
            FineTuneModule,
            trainer_class=Trainer,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={**quiet, **about, **{command: dict(quiet) for command in FineTuneCLI.subcommands()}},
        )
    except ArgumentError as error:
        raise explain(str(error), [], {}) from error
    except Exception as error:
        if (mistake := mistake_behind(error)) is not None:
            raise mistake from error
        raise


def _settle_mode(key: str, options: Namespace, model: Namespace) -> None:
    """Sets whether the least or the greatest value of the monitored metric is best, where lit_ft logs that metric."""
    modes = {f"val/{name}": mode for name, mode in METRICS[model["init_args"]["task"]].items()}
    if options["monitor"] in modes:
        options["mode"] = modes[options["monitor"]]
    elif model["class_path"].endswith(".FineTuneModule"):
        raise unknown("metric", options["monitor"], modes, f"--{key}.monitor")


def _plain(value: Any) -> Any:
    """A namespace as dicts."""
    return value.as_dict() if isinstance(value, Namespace) else value


def _name(config: Namespace) -> str:
    """The name of the last config file, by which runs are filed."""
    files = config.get("config") or []
    return Path(str(files[-1])).stem if files else "run"


def _shown(path: Path) -> Path:
    """A path as a person in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
