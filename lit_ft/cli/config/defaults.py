"""Defaults of a config, and what it leaves open: the name, the checkpoint and its model, the data, the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from lit_ft.backbones.build import input_spec
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.cli.commands import EVALUATIONS
from lit_ft.cli.config.checkpoint import locate_checkpoint, name_run, pair_arguments, refuse_other_model
from lit_ft.console import format_path
from lit_ft.data.folds import check_folds
from lit_ft.errors import UserError, unknown
from lit_ft.model.checkpoint import hyper_parameters
from lit_ft.model.module import FineTuneModule
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.recipes import FOLDER as RECIPES
from lit_ft.runs import DEFAULT_ROOT, find_run_of_checkpoint
from lit_ft.tasks.monitored import METRICS
from lit_ft.training.trainer_options import refuse_unknown_names

CHECKPOINT: dict[str, Any] = {"filename": "best", "auto_insert_metric_name": False, "enable_version_counter": False}

TRAINER: dict[str, Any] = {
    "max_epochs": 10,
    "default_root_dir": DEFAULT_ROOT,
    "enable_model_summary": False,  # the plan has it
    "log_every_n_steps": 10,
}

_HERE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": None, "plugins": None}


def settle(config: Namespace, command: str, args: Sequence[str]) -> None:
    """Completes the config of a command with these options, in place, by what follows from the rest of it.

    Raises:
        UserError: If something is missing, or contradicts the checkpoint.
    """
    files = config_files(config)
    config["name"] = name_run(config["name"], files)
    if config.get("ckpt_path") is not None:
        root = config["trainer"]["default_root_dir"]
        config["ckpt_path"] = locate_checkpoint(config["ckpt_path"], root, config["name"], files)
    if command in EVALUATIONS:
        _take_checkpoint_model(config, command, args)
    if config["data"] is None:
        config["data"] = default_data(command, config.get("ckpt_path"))
    options = config["data"].get("init_args") or {}
    if options.get("fit") is not None:  # before images are looked for
        images = InputConfig.read(as_plain(config["model"]["init_args"].get("input")))
        images.refuse_fit(options["fit"], "data.fit", is_fitted=command in EVALUATIONS)
    changes_colours = options.get("augment") not in (None, "none", "basic")
    if options.get("bands") is not None and changes_colours and not _chooses_augment(args):
        options["augment"] = "basic"  # that of a recipe is for photos
    if "task" in options and options["task"] is None:
        options["task"] = config["model"]["init_args"].get("task")
    if command == "fit" and config["refit"] and any(name == "--refit" for name, _ in pair_arguments(args)):
        rank_zero_warn("`refit`: fit leaves it out; use lit-ft finetune for it")
    if config["checkpoint"] is None or config["trainer"]["enable_checkpointing"] is False:
        config["checkpoint"], config["trainer"]["enable_checkpointing"] = None, False


def _chooses_augment(args: Sequence[str]) -> bool:
    """Whether an augmentation was chosen by an option or in a config, and not by a recipe of lit_ft alone."""
    for name, value in pair_arguments(args):
        if name in ("--data.augment", "--data.init_args.augment"):
            return True
        is_recipe = name == "--config" and Path(value).expanduser().resolve().is_relative_to(RECIPES.resolve())
        if name not in ("--config", "--data") or is_recipe:
            continue
        is_file = name == "--config" and not value.lstrip().startswith("{")
        content = yaml.safe_load(Path(value).expanduser().read_text("utf-8") if is_file else value)
        given = content.get("data") if name == "--config" and isinstance(content, dict) else content
        if isinstance(given, dict) and "augment" in (given.get("init_args") or given):
            return True
    return False


def take_first_fold(config: Namespace, command: str) -> bool:
    """Has a command that only looks at a run take the first fold, where there are folds and none is given."""
    options = config["data"].get("init_args") or {}
    is_look = command == "plan" or (command == "finetune" and config["trainer"]["fast_dev_run"])
    is_taken = bool(is_look and options.get("folds") and options.get("fold") is None)
    if is_taken:
        options["fold"] = 1
    return is_taken


def count_folds(config: Namespace, command: str) -> int | None:
    """The number of folds, each of which is a run of its own; None where a command is one run.

    Raises:
        UserError: If the config is not for folds.
    """
    options = config["data"].get("init_args") or {}
    folds = options.get("folds")
    if command != "finetune" or folds is None or options.get("fold") is not None:
        return None
    check_folds(folds, None)
    if config["ckpt_path"] is not None:
        raise UserError(
            f"`ckpt_path`: resumes one run, and `data.folds` {folds} is several; give `resume` their folder"
        )
    if config["checkpoint"] is None:
        raise UserError("`checkpoint`: null keeps no model of a fold to measure; leave it out, or `data.folds`")
    if config["trainer"]["limit_val_batches"] == 0:
        raise UserError("`trainer.limit_val_batches`: 0 measures nothing of a fold; leave it out, or `data.folds`")
    return int(folds)


def config_files(config: Namespace) -> list[str]:
    """The config files that were given; a config from Python is none."""
    return [str(file) for file in config.get("config") or [] if file is not None]


def _take_checkpoint_model(config: Namespace, command: str, args: Sequence[str]) -> None:
    """Takes the options of the model from the checkpoint, and leaves out what only a fit needs."""
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
    if command in ("finetune", "plan", "fit", "download"):
        return Namespace(class_path="lit_ft.data.DigitsDataModule", init_args=Namespace())
    run = find_run_of_checkpoint(ckpt_path)
    hint = f", or `--config` {format_path(run.config)} for those of the run" if run else ""
    images = "predict" if command == "predict" else "root"
    raise UserError(
        f"`data`: lit-ft {command} needs images; give `data` ImageFolderDataModule `data.{images}` FOLDER{hint}"
    )


def settle_monitor(key: str, options: Namespace, model: FineTuneModule) -> None:
    """Settles which metric a callback watches, and whether its least or greatest value is best, where lit_ft logs it.

    Raises:
        UserError: If the metric is of another task.
    """
    monitored = {f"val/{name}": mode for name, mode in METRICS[model.hparams["task"]].items()}
    options["monitor"] = options["monitor"] or model.main_metric[0]
    if options["monitor"] in monitored:
        options["mode"] = monitored[options["monitor"]]
    elif type(model) is FineTuneModule:  # one that is derived from it may log others
        raise unknown("metric", options["monitor"], monitored, f"`{key}.monitor`")


def remove_effects(config: Namespace) -> None:
    """Leaves of a config what its plan depends on: no weights, no files, and no other processor than this one.

    Raises:
        UserError: If it names a strategy or an accelerator that does not exist.
    """
    model = config["model"]["init_args"]
    if "backbone" in model and "weights" in model:
        images = InputConfig.read(as_plain(model["input"]))
        spec = images.applied_to(input_spec(as_plain(model["backbone"]), model["weights"]))
        spec = spec.with_fit((config["data"].get("init_args") or {}).get("fit"))
        if model["weights"] is not None and not is_file_name(model["weights"]):  # what is published does fit
            model["weights"] = None
        model["input"] = Namespace({**asdict(spec), "mean": list(spec.mean), "std": list(spec.std)})
    refuse_unknown_names(config["trainer"])
    _imagine_cluster(config)
    config["trainer"].update(Namespace({**_HERE, "logger": False, "num_sanity_val_steps": 0}))
    config["report"] = Namespace(class_path="lit_ft.RunReport", init_args=Namespace())


def _imagine_cluster(config: Namespace) -> None:
    """Lets a plan be of the machines that the trainer has, where it has several devices."""
    trainer = config["trainer"]
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else None
    is_asked = config["nodes"] is not None or config["devices"] is not None
    if is_asked or nodes > 1 or (count or 1) > 1:
        config["nodes"] = nodes if config["nodes"] is None else config["nodes"]
        config["devices"] = count if config["devices"] is None else config["devices"]
        config["precision"] = config["precision"] or str(trainer["precision"] or "32-true")


def as_plain(value: Any) -> Any:
    """A namespace as dicts."""
    return value.as_dict() if isinstance(value, Namespace) else value
