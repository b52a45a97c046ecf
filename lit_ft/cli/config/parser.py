"""The parser of a command: trainer, model, data, named callbacks, optimizer and schedule."""

from __future__ import annotations

import importlib
import inspect
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ft.cli.commands import COMMANDS
from lit_ft.cli.config import first_release
from lit_ft.cli.config.advice import PHOTO_COMMANDS, describe_short_forms
from lit_ft.cli.config.config_files import describe_config_fault
from lit_ft.cli.config.defaults import CHECKPOINT, TRAINER, as_plain, settle
from lit_ft.cli.config.known_names import class_names, option_names
from lit_ft.cli.config.recipe_names import find_configs
from lit_ft.cli.messages import Complaint, explain
from lit_ft.errors import UserError, is_from_user_code
from lit_ft.evaluation.predictions import PredictionWriter
from lit_ft.evaluation.run_report import RunReport
from lit_ft.features.cache import FeatureCache
from lit_ft.model.module import FineTuneModule
from lit_ft.optim import WarmupCosine  # noqa: F401 - so that its name is known without a module
from lit_ft.training.trainer import EarlyStopping, Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

CALLBACKS: tuple[tuple[str, type[Callback], dict[str, Any] | None], ...] = (
    ("unfreeze", GradualUnfreezing, {"head_fit": None}),
    ("feature_cache", FeatureCache, {}),
    ("checkpoint", ModelCheckpoint, CHECKPOINT),
    ("early_stopping", EarlyStopping, None),
    ("report", RunReport, {}),
    ("predictions", PredictionWriter, {}),
)
"""The named callbacks: key, class, and options where it is on by default."""

_CLASSES: dict[str, type] = {
    "model": FineTuneModule,
    "data": L.LightningDataModule,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
    "trainer.logger": Logger,
    "trainer.callbacks": Callback,
}
"""The options that take a class by name, and what it is derived from."""


class ConfigCLI(LightningCLI):
    """LightningCLI up to a config that is complete: nothing is made of it.

    Args:
        command: The command.
        args: Its options.
        own: How its parser takes the options that no other part of a config has, by name.
        options: As of `LightningCLI`.
    """

    def __init__(
        self,
        command: str,
        args: Sequence[str],
        own: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        self.command, self.args, self._own = command, [*args], own or {}
        self._nested: list[str] = []  # options of the model that are given there, and not at the top
        first = " [PHOTOS]" if command in PHOTO_COMMANDS else " [RUN]" if command in ("validate", "test") else ""
        usage = f"lit-ft {command}{first} [options]"  # without all of them, which are listed below
        description = f"{COMMANDS[command]} {describe_short_forms(command)}"
        about = {"prog": f"lit-ft {command}", "usage": usage, "description": description}
        super().__init__(
            FineTuneModule,
            trainer_class=Trainer,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            subclass_mode_model=True,
            auto_configure_optimizers=False,
            parser_kwargs={**about, "exit_on_error": False, "allow_abbrev": False, "parser_mode": first_release.MODE},
            args=find_configs(self.args),
            run=False,  # each command has a parser of its own, as building all takes long
            load_from_checkpoint_support=False,  # the module collects its hyperparameters itself
            **options,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the name of the run, the named callbacks, optimizer and schedule, and the command's own options."""
        about = "Runs go to logs/NAME; null takes the name of the last config, without those in a folder cluster."
        parser.add_argument("--name", type=str | None, default=None, help=about)
        for key, callback, default in CALLBACKS:
            parser.add_lightning_class_args(callback, key, subclass_mode=True, required=False)
            if default is not None:
                path = f"{callback.__module__}.{callback.__qualname__}"
                parser.set_defaults({key: {"class_path": path, "init_args": default}})
        for key, bases, skip in (
            ("optimizer", (Optimizer,), {"params", "lr"}),
            ("lr_scheduler", LRSchedulerTypeTuple, {"optimizer", "total_steps", "first_step", "max_lr", "base_lr"}),
        ):
            parser.add_subclass_arguments(bases, key, instantiate=False, fail_untyped=False, required=False, skip=skip)
            parser.link_arguments((key, "model"), f"model.init_args.{key}", compute_fn=self._take_from(key))
        model = {"class_path": "lit_ft.model.module.FineTuneModule", "init_args": {"backbone": "mnist_cnn"}}
        parser.set_defaults({"model": model, "lr_scheduler": {"class_path": "lit_ft.optim.WarmupCosine"}})
        about = "finetune fits again on training and validation images what it chose; give true if each image counts."
        parser.add_argument("--refit", type=bool, default=False, help=about)
        for key, how in self._own.items():
            parser.add_argument(f"--{key}", **how)

    def _take_from(self, key: str) -> Callable[[Any, Any], Any]:
        """A function that gives the model an option, and notes where the model has its own, which it replaces."""

        def take(value: Any, model: Any) -> Any:  # help shows this name
            plain, options = as_plain(value), model["init_args"]
            if key in options and as_plain(options[key]) not in (plain, _default_of(model["class_path"], key)):
                self._nested.append(key)
            return plain

        return take

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the options; what is refused is a user error with the nearest valid choice."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, UnicodeDecodeError) as error:
            if is_from_user_code(error):  # such as a module with a fault, which could not be imported
                raise
            if fault := describe_config_fault(find_configs(self.args)):
                raise UserError(fault) from error
            classes = {key: class_names(base) for key, base in _CLASSES.items()}
            options = option_names(parser.get_defaults())
            raise explain(Complaint(str(error), options, classes, self.command, self.args)) from error
        for key in self._nested:
            raise UserError(f"`model.{key}`: would be left out there; give `{key}`, a section of its own")
        trainer = self.config["trainer"]
        # A number or a list in a config passes the parser, and options that follow are then the only ones.
        if not isinstance(trainer, Namespace) or "enable_checkpointing" not in trainer:
            given = "a value in a config" if isinstance(trainer, Namespace) else trainer
            raise UserError(f"`trainer`: {given} does not fit; give its options, as `trainer.max_epochs` 3")
        seed = self.config["seed_everything"]
        if not isinstance(seed, bool) and not 0 <= (seed or 0) < 2**32:
            raise UserError(f"`seed_everything`: must be between 0 and 2**32 - 1, got {seed}")

    def before_instantiate_classes(self) -> None:
        """Settles what follows from the rest of the config."""
        settle(self.config, self.command, self.args)

    def instantiate_classes(self) -> None:
        """Makes nothing."""

    def model_options(self) -> dict[str, Any]:
        """The options of the model, as plain values."""
        return dict(as_plain(self.config["model"]["init_args"]))

    def make_data(self, default_root: Path | None = None, root: Path | None = None) -> Any:
        """Makes a data module, apart from the one that is trained on.

        Args:
            default_root: Where it fetches files to, if the config names no folder.
            root: Where it fetches files to, whatever the config names.
        """
        config = self.config["data"].clone()
        options = config["init_args"]
        if "root" in options and (root or (default_root and options["root"] is None)):
            options["root"] = str(root or default_root)
        if "download" in options and (root or default_root):
            options["download"] = True
        return self.make(data=config)["data"]

    def make(self, **parts: Any) -> Namespace:
        """Makes the objects of some parts of a config."""
        made: Namespace = self.parser.instantiate(Namespace(parts), instantiate_groups=False)
        return made


def _default_of(class_path: str, option: str) -> Any:
    """The default of an option of a class, which may take it from those that it is derived from."""
    home, _, name = class_path.rpartition(".")
    made_by = getattr(importlib.import_module(home), name)
    for owner in inspect.getmro(made_by) if inspect.isclass(made_by) else (made_by,):
        if found := inspect.signature(owner).parameters.get(option):
            return found.default
    return None
