"""Defaults of a config, and what it leaves open: the name, the checkpoint and its model, the data, the metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.console import format_path
from lit_ft.errors import UserError, unknown
from lit_ft.model.checkpoint import hyper_parameters, refuse_other_model
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import find_checkpoint, find_run_of_checkpoint
from lit_ft.tasks.task import METRICS

EVALUATIONS = ("validate", "test", "predict")

CHECKPOINT: dict[str, Any] = {
    "filename": "best",
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}

TRAINER: dict[str, Any] = {
    "max_epochs": 10,
    "default_root_dir": "logs",
    "enable_model_summary": False,  # the plan has it
    "log_every_n_steps": 10,
}

_TRIED_WITHOUT_DATA = ("finetune", "plan", "fit", "download")


def settle(config: Namespace, command: str, args: Sequence[str]) -> None:
    """Completes a config by what follows from the rest of it.

    Args:
        config: The config, which is changed.
        command: The command.
        args: Its options as they were given.

    Raises:
        UserError: If something is missing, or contradicts the checkpoint.
    """
    config["name"] = config["name"] or run_name(config_files(config))
    if config.get("ckpt_path") in ("best", "last"):
        folder = f"{config['trainer']['default_root_dir']}/{config['name']}"
        config["ckpt_path"] = find_checkpoint(folder, config["ckpt_path"], config_files(config))
    if command in EVALUATIONS:
        take_checkpoint_model(config, command, args)
    if config["data"] is None:
        config["data"] = default_data(command, config.get("ckpt_path"))
    options = config["data"].get("init_args") or {}
    if "task" in options and options["task"] is None:
        options["task"] = config["model"]["init_args"].get("task")
    if config["checkpoint"] is None or config["trainer"]["enable_checkpointing"] is False:
        config["checkpoint"], config["trainer"]["enable_checkpointing"] = None, False


def config_files(config: Namespace) -> list[str]:
    """The config files that were given; a config from Python is none."""
    return [str(file) for file in config.get("config") or [] if file is not None]


def run_name(files: Sequence[str]) -> str:
    """The name of a run: that of its last config file.

    >>> run_name(["a/first.yaml", "second.yaml"]), run_name([])
    ('second', 'run')
    """
    return Path(files[-1]).stem if files else "run"


def take_checkpoint_model(config: Namespace, command: str, args: Sequence[str]) -> None:
    """Takes the options of the model from the checkpoint, and leaves out what only a fit needs.

    Args:
        config: The config of an evaluation, which is changed.
        command: The command.
        args: Its options as they were given.

    Raises:
        UserError: If there is no checkpoint, or the model was asked to be another.
    """
    files = config_files(config)
    hparams = hyper_parameters(config["ckpt_path"], command, config["trainer"]["default_root_dir"], files)
    known = config["model"]["init_args"]
    refuse_other_model(as_plain(known), hparams, args, files)
    # What only a fit needs stays the command's own: jsonargparse would import it where it saves the config.
    taken = {key: hparams[key] for key in hparams if key in known and key not in ("optimizer", "lr_scheduler")}
    refuse_foreign(taken, as_plain(known))
    known.update(Namespace(taken | ({"weights": None} if "weights" in taken else {})))
    config.update(Namespace(checkpoint=None, early_stopping=None, unfreeze=None, feature_cache=None))


def default_data(command: str, ckpt_path: str | None) -> Namespace:
    """The data of a fit that was given none; no default of the parser, which would hand its options on to the next.

    Raises:
        UserError: If other commands are given none, as the images to try a fit with are not those that are meant.
    """
    if command in _TRIED_WITHOUT_DATA:
        return Namespace(class_path="lit_ft.data.DigitsDataModule", init_args=Namespace())
    run = find_run_of_checkpoint(ckpt_path)
    hint = f", or --config {format_path(run.config)} for those of the run" if run else ""
    images = "predict" if command == "predict" else "root"
    raise UserError(
        f"`data`: lit-ft {command} needs images; give --data ImageFolderDataModule --data.{images} FOLDER{hint}"
    )


def settle_monitor(key: str, options: Namespace, model: FineTuneModule) -> None:
    """Settles which metric is watched, and whether its least or greatest value is best, where lit_ft logs it.

    Args:
        key: The callback.
        options: Its options, which are changed.
        model: The module, whose task decides.

    Raises:
        UserError: If the metric is of another task.
    """
    monitored = {f"val/{name}": mode for name, mode in METRICS[model.hparams["task"]].items()}
    options["monitor"] = options["monitor"] or model.main_metric[0]
    if options["monitor"] in monitored:
        options["mode"] = monitored[options["monitor"]]
    elif type(model) is FineTuneModule:  # one that is derived from it may log others
        raise unknown("metric", options["monitor"], monitored, f"`{key}.monitor`")


def as_plain(value: Any) -> Any:
    """A namespace as dicts."""
    return value.as_dict() if isinstance(value, Namespace) else value
