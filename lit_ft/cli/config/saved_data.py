"""The data of a checkpoint, for evaluations that are given no other."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lit_ft import data
from lit_ft.backbones.weights import torch_files
from lit_ft.model.checkpoint import refuse_missing_checkpoint

_COMMANDS = ("validate", "test", "predict")
# Options with an effect beside the evaluation, which a checkpoint of strangers must not have.
_EFFECTS = ("download", "chunk_cache")


def add_saved_data(command: str, args: Sequence[str]) -> list[str]:
    """The options of a command, with the data of the checkpoint that is evaluated before all options.

    Options that are given replace those of the checkpoint. Nothing is added where a class of data is given, nor to
    predict, unless it is given the images.

    Args:
        command: The command.
        args: Its options.

    Raises:
        UserError: If the checkpoint does not exist.
    """
    args = list(args)
    path = _read_values(args, "--ckpt_path")[-1:]
    if command in _COMMANDS and path and not _gives_data(args):
        if path[0] not in ("best", "last"):  # which the config finds; else options of unknown data would be blamed
            refuse_missing_checkpoint(path[0])
        found = read_saved_data(path[0])
        if found is not None and (command != "predict" or _read_values(args, "--data.predict")):
            return ["--data", json.dumps(found), *args]
    return args


def read_saved_data(path: str) -> dict[str, Any] | None:
    """Class path and options of the data in a checkpoint; none where these are no data module of lit_ft.

    Args:
        path: The checkpoint; one that cannot be read has none.
    """
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


def _gives_data(args: Sequence[str]) -> bool:
    """Whether a class of data is given, by an option or in a config."""
    is_named = _read_values(args, "--data") or _read_values(args, "--data.class_path")
    return bool(is_named) or any(map(_has_data, _read_values(args, "--config")))


def _has_data(config: str) -> bool:
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return True  # refused where it is parsed
    return isinstance(content, dict) and content.get("data") is not None


def _read_values(args: Sequence[str], option: str) -> list[str]:
    """The values of an option, as ``--option value`` or ``--option=value``, in their order."""
    values = []
    for arg, following in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        if name == option:
            values.append(value if equals else following)
    return values
