"""Checkpoints of lit_ft: where they are, and what they hold of their run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_ft.backbones.weights import torch_files
from lit_ft.errors import UserError, nearest
from lit_ft.runs import suggest_checkpoint

# What makes another model of it, however it was trained.
_OF_THE_MODEL = ("backbone", "stem", "pool", "input", "head", "task", "classes")


def refuse_missing_checkpoint(path: str) -> None:
    """Raises `UserError` with the nearest checkpoint, if there is no file of that path."""
    if not Path(path).is_file():
        near = nearest(str(path), map(str, Path(path).parent.glob("*.ckpt")), most=1)
        raise UserError(f"`ckpt_path`: no such file: {path}" + (f"; nearest: {near[0]}" if near else ""))


def hyper_parameters(path: str | None, command: str, root: str, configs: Sequence[Any] = ()) -> dict[str, Any]:
    """The hyperparameters in a lit_ft checkpoint.

    Args:
        path: The checkpoint, or ``None`` where the user gave none.
        command: The command that needs it, for the message.
        root: The folder of all runs, to find one that the user could have meant.
        configs: The configs that the user gave; that of a run has a checkpoint beside it.

    Raises:
        UserError: If no file is given, it does not exist, or is not a lit_ft checkpoint.
    """
    if path is None:
        hint = suggest_checkpoint(root, configs)
        raise UserError(f"`ckpt_path`: lit-ft {command} needs the checkpoint of a run{hint}")
    refuse_missing_checkpoint(path)
    try:
        checkpoint = torch_files.load(path, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"`ckpt_path`: {path} is not a checkpoint, or it is damaged") from error
    hparams = all_hyperparameters(checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or "backbone" not in hparams:
        raise UserError(f"`ckpt_path`: {path} is no lit_ft checkpoint; to start from its weights use `model.weights`")
    return dict(hparams)


def all_hyperparameters(checkpoint: Mapping[str, Any]) -> Any:
    """The hyperparameters in a checkpoint, also those that a subclass's constructor does not take."""
    return checkpoint.get("all_hyper_parameters", checkpoint.get("hyper_parameters", {}))


def saved_options(path: str) -> dict[str, Any]:
    """The options of the run that wrote a checkpoint, as of `run_options`; none where it does not tell them."""
    options = torch_files.load(path, mmap=True).get("run_options")
    return dict(options) if isinstance(options, dict) else {}


def refuse_other_model(
    model: Mapping[str, Any], hparams: Mapping[str, Any], arguments: Sequence[str], configs: Sequence[Any]
) -> None:
    """Refuses options of the model that the user gave, where the checkpoint, whose model it will be, has others.

    What a command line says is compared whole. Of configs, as of a recipe that is given for its data, just what makes
    another model; how it was trained does not matter any more.

    Args:
        model: The options as they were parsed.
        hparams: Those of the checkpoint.
        arguments: The command line.
        configs: The config files that it names.

    Raises:
        UserError: If one differs.
    """
    kept = {**hparams, "weights": hparams.get("source_weights")}
    for key in sorted(_typed(arguments) | _filed(configs) & set(_OF_THE_MODEL)):
        flag = key if key in ("optimizer", "lr_scheduler") else f"model.{key}"
        for option, given, own in _differences(flag, model.get(key), kept[key]) if key in kept else ():
            raise UserError(
                f"`{option}`: {given}, but the checkpoint is of a run with {own}, and its model is taken; leave the "
                "option out, or give another `ckpt_path`"
            )


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
