"""What the checkpoint of a run adds to a later config, or refuses in it."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_ft import data
from lit_ft.backbones.weights import torch_files
from lit_ft.cli.commands import EVALUATIONS
from lit_ft.cli.config.own_images import MAIN_OPTIONS, has_own_images
from lit_ft.cli.config.recipe_names import find_configs
from lit_ft.cli.config.words import is_there
from lit_ft.data.datasets.classes import refuse_foreign_dataset
from lit_ft.data.files.folders import find_file
from lit_ft.data.tables.tables import read_table, unescape_formula
from lit_ft.errors import UserError
from lit_ft.model.checkpoint import (
    EXPORTED,
    all_hyperparameters,
    hyper_parameters,
    read_checkpoint,
    refuse_missing_checkpoint,
)
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import DEFAULT_ROOT, find_best_checkpoint, find_checkpoint, find_run_of_checkpoint

# Options with an effect beside the evaluation, which a checkpoint of strangers must not have.
_EFFECTS = ("download", "chunk_cache")

_TABLE = "ImageTableDataModule"


def name_run(given: str | None, configs: Sequence[str]) -> str:
    """The name of a run: the one that is given, else that of its last config, before those of a cluster.

    >>> name_run(None, ["configs/quickstart.yaml", "configs/cluster/ddp.yaml"])
    'quickstart'
    """
    named = [path for path in configs if Path(path).absolute().parent.name != "cluster"] or configs
    return given or (Path(named[-1]).stem if named else "run")


def locate_checkpoint(given: str, root: str | None, name: str, configs: Sequence[str]) -> str:
    """The path of a checkpoint, which may be given as ``best`` or ``last`` of the runs of a name below ``root``.

    Raises:
        UserError: If these runs have none.
    """
    return find_checkpoint(f"{root or '.'}/{name}", given, configs) if given in ("best", "last") else given


def refuse_other_model(
    model: Mapping[str, Any], hparams: Mapping[str, Any], arguments: Sequence[str], configs: Sequence[Any]
) -> None:
    """Raises `UserError` for options of the model that the user gave and that are others than in the checkpoint.

    The command line is compared whole. Of config files, as of a recipe that is given for its data, just what makes
    another model is; how it was trained does not matter any more.
    """
    kept = {**hparams, "weights": hparams.get("source_weights")}
    another_model = {"backbone", "stem", "pool", "input", "head", "task", "classes"}
    for key in sorted(_typed(arguments) | _filed(configs) & another_model):
        flag = key if key in ("optimizer", "lr_scheduler") else f"model.{key}"
        for option, given, own in _differences(flag, model.get(key), kept[key]) if key in kept else ():
            raise UserError(
                f"`{option}`: {given}, but the checkpoint is of a run with {own}, and its model is taken; leave the "
                "option out, or give another `ckpt_path`"
            )


def add_saved_data(command: str, args: Sequence[str]) -> list[str]:
    """The options of a command, with the data of the checkpoint that is evaluated before all options.

    A checkpoint may come first, before all options. Options that are given replace those of the checkpoint. Nothing is
    added where a class of data is given, nor to predict, unless it is given the images.

    Raises:
        UserError: If the checkpoint does not exist.
    """
    args = list(args)
    if command in ("validate", "test") and args and not args[0].startswith("-"):
        args = ["--ckpt_path", str(find_best_checkpoint(args[0])), *args[1:]]
    if command not in EVALUATIONS or gives_data(args) or (given := _read_setting(args, "ckpt_path")) is None:
        return args
    configs = _read_values(args, "--config")
    root = _read_setting(args, "trainer.default_root_dir", DEFAULT_ROOT)
    path = locate_checkpoint(given, root, name_run(_read_setting(args, "name"), configs), configs)
    refuse_missing_checkpoint(path)  # else options of unknown data would be blamed
    if Path(path).suffix.lower() in EXPORTED:  # likewise
        hyper_parameters(path, command, "")
    found = read_saved_data(path)
    if found is None or (command == "predict" and not _read_values(args, "--data.predict")):
        return args
    refuse_foreign_dataset(found["init_args"].get("dataset"), _read_setting(args, "data.dataset"))
    if command == "test" and _read_setting(args, "data.table") and not found["class_path"].endswith(f".{_TABLE}"):
        found = {"class_path": f"lit_ft.data.{_TABLE}", "init_args": {}}  # of a run on photos in folders, say
    if command == "test" and _tests_others(args, found, path):
        found["init_args"] |= {"tested_classes": all_hyperparameters(read_checkpoint(path)).get("classes")}
        if (table := _read_setting(args, "data.table")) and (kept := found["init_args"].get("split_column")):
            _settle_split(args, table, kept, found["init_args"])
    if command != "predict":
        _refuse_moved(args, found)
    return ["--data", json.dumps(found), *args]


def _refuse_moved(args: Sequence[str], found: Mapping[str, Any]) -> None:
    """Raises `UserError` where the images of a run are given from the folder that it was trained in, and not there."""
    option = MAIN_OPTIONS.get(found["class_path"].rpartition(".")[2], "")
    kept = str(found["init_args"].get(option) or "")
    if kept and _read_setting(args, f"data.{option}") is None and not (Path(kept).is_absolute() or is_there(kept)):
        raise UserError(
            f"`data.{option}`: {kept} does not exist; it is the path that the run saved, from the folder that it was "
            f"trained in; go there, or give `data.{option}`"
        )


def _tests_others(args: Sequence[str], found: Mapping[str, Any], checkpoint: str) -> bool:
    """Whether a folder or table is given that has not the images of the run of a checkpoint."""
    kept, names = found["init_args"], ("root", "table", "path_column")
    given = {name: value for name in names if (value := _read_setting(args, f"data.{name}")) is not None}
    option = MAIN_OPTIONS.get(found["class_path"].rpartition(".")[2], "")
    if option not in given:
        return False
    return not has_own_images(option, {**kept, **given}, kept, find_run_of_checkpoint(checkpoint))


def add_tested_data(args: Sequence[str], task: str, classes: Sequence[str]) -> list[str]:
    """The options of a test of an exported file, with the class of its data before all options, unless it is given.

    Raises:
        UserError: If no data is given.
    """
    if gives_data(args):
        return list(args)
    name, options = "ImageFolderDataModule", dict[str, Any](tested_classes=list(classes))
    if (table := _read_setting(args, "data.table")) is not None:
        name = _TABLE
        if task == "regression" or (task == "multilabel" and _has_columns(table, classes)):
            options["label_columns"] = list(classes)
    elif not any(arg.startswith("--data.") for arg in args):
        raise UserError(
            "`data.root`: lit-ft test needs labelled images; give a folder with class folders, `data.table` TABLE, or "
            "`--config` RUN/config.yaml for the images of the run"
        )
    return ["--data", json.dumps({"class_path": f"lit_ft.data.{name}", "init_args": options}), *args]


def _settle_split(args: Sequence[str], table: str, kept: str, options: dict[str, Any]) -> None:
    """Leaves out the column by which the table of a run was split, where that which is tested has none of its name."""
    if _read_setting(args, "data.split_column", "") == "" and not _has_columns(table, [kept]):
        options["split_column"] = None
        what = "its column split counts" if _has_columns(table, ["split"]) else "all of its rows are tested"
        rank_zero_warn(f"{table} has no column {kept!r}, by which the run's own table was split, so {what}")


def _has_columns(table: str, names: Sequence[str]) -> bool:
    columns = read_table(find_file(table, "`data.table`"), "`data.table`").columns
    return set(names) <= set(map(unescape_formula, columns))


def read_saved_data(path: str) -> dict[str, Any] | None:
    """Class path and options of the data in a checkpoint, if it can be read and these are a data module of lit_ft."""
    try:
        checkpoint = torch_files.load(path, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError):
        return None  # refused where its model is read
    if not isinstance(checkpoint, dict):
        return None
    options = checkpoint.get("run_options") or {}
    # Lightning saves no class; without a command line there is the state of the data module, by the name of that.
    states = [f"lit_ft.data.{key}" for key in checkpoint if key in data.__all__]
    class_path = str(options.get("data") or next(iter(states), ""))
    name = class_path.rpartition(".")[2]
    if not class_path.startswith("lit_ft.") or name not in data.__all__:
        return None
    # Checkpoints before 0.2 have no hyperparameters of data.
    earlier = {key.removeprefix("data."): value for key, value in options.items() if key.startswith("data.")}
    hparams = checkpoint.get(data.ImageDataModule.CHECKPOINT_HYPER_PARAMS_KEY, earlier)
    kept = {key: value for key, value in hparams.items() if key not in _EFFECTS}
    return {"class_path": f"lit_ft.data.{name}", "init_args": kept}


def gives_data(args: Sequence[str]) -> bool:
    """Whether a class of data is given, by an option or in a config."""
    if _read_values(args, "--data") or _read_values(args, "--data.class_path"):
        return True
    try:
        configs = [yaml.safe_load(Path(path).read_text(encoding="utf-8")) for path in _read_values(args, "--config")]
    except (OSError, ValueError, yaml.YAMLError):
        return True  # refused where it is parsed
    return any(isinstance(config, dict) and config.get("data") is not None for config in configs)


def _read_setting(args: Sequence[str], option: str, default: str | None = None) -> str | None:
    """The value of an option, by whichever of the command line and its configs has it last."""
    value = default
    for name, content in pair_arguments(args):
        if name == f"--{option}":
            value = None if content == "null" else content
        elif name == "--config":
            found = yaml.safe_load(Path(content).read_text(encoding="utf-8"))
            *sections, last = option.split(".")
            for section in sections:
                found = found.get(section) if isinstance(found, dict) else None
            if isinstance(found, dict) and last in found:
                value = found[last]
    return value


def _read_values(args: Sequence[str], option: str) -> list[str]:
    """The values of an option, in their order."""
    return [value for name, value in pair_arguments(args) if name == option]


def pair_arguments(args: Sequence[str]) -> list[tuple[str, str]]:
    """Each argument as an option, with its value: ``--option value``, ``--option=value``; ``-cFILE`` is of --config."""
    given = find_configs(args)
    full = [re.sub("^-c=?(.*)", lambda found: f"--config{found[1] and '='}{found[1]}", arg) for arg in given]
    pairs = [(arg.partition("="), following) for arg, following in pairwise([*full, ""])]
    return [(name, value if equals else following) for (name, equals, value), following in pairs]


def _typed(arguments: Sequence[str]) -> set[str]:
    """The options of the model on a command line."""
    names = [argument.partition("=")[0].removeprefix("--").split(".") for argument in arguments if argument[:2] == "--"]
    nested = {part for first, *rest in names if first == "model" for part in [p for p in rest if p != "init_args"][:1]}
    return nested | {first for first, *_ in names if first in ("optimizer", "lr_scheduler")}


def _filed(configs: Sequence[Any]) -> set[str]:
    """The options of the model in config files."""
    found: set[str] = set()
    for config in configs:
        content = yaml.safe_load(Path(str(config)).read_text(encoding="utf-8"))
        model = content.get("model") if isinstance(content, dict) else None
        if isinstance(model, dict):
            found |= set(model.get("init_args") or {} if "class_path" in model else model)
    return found


def _differences(option: str, given: Any, kept: Any) -> Iterator[tuple[str, Any, Any]]:
    """The options that were given and are something else, with both values; null leaves the choice."""
    if isinstance(given, Mapping) and isinstance(kept, Mapping):
        for key, value in given.items():
            yield from _differences(f"{option}.{key}", value, kept.get(key))
    elif given is not None and given != (tuple(kept) if isinstance(given, tuple) else kept):
        yield option, given, kept
