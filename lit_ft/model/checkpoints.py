"""Decides which checkpoint a command means, and what the run was that wrote it."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
import yaml
from lightning.fabric.utilities.cloud_io import _load
from torch import Tensor, nn

from lit_ft.backbones.weights import torch_files
from lit_ft.errors import UserError, nearest
from lit_ft.runs import suggest_checkpoint
from lit_ft.tasks.standardisation import Standardisation

# What makes another model of it, however it was trained.
_OF_THE_MODEL = ("backbone", "stem", "pool", "input", "head", "task", "classes")


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
    if not Path(path).is_file():
        near = nearest(str(path), map(str, Path(path).parent.glob("*.ckpt")), most=1)
        raise UserError(f"`ckpt_path`: no such file: {path}" + (f"; nearest: {near[0]}" if near else ""))
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


def saved_arguments(checkpoint: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments that Lightning makes a module of a checkpoint with.

    Args:
        checkpoint: Its content.
        parameters: Those of the module's class.
    """
    saved: dict[str, Any] = {}
    for key in ("hparams", "module_arguments", "hyper_parameters"):  # the first two are those of Lightning before 0.8
        saved |= checkpoint.get(key) or {}
    names = {key for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    whole = checkpoint.get("hparams_name")  # of the one argument that takes them all
    if whole in names:
        saved = {whole: saved}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in saved.items() if takes_any or key in names}


@dataclass(frozen=True)
class TrainedHead:
    """The head in a lit_ft checkpoint.

    Args:
        path: The checkpoint.
        classes: The names of the classes that it was trained for.
        task: The name of the task.
        standardisation: For regression, mean and scale of the targets that it was trained on.
        state: Its tensors, by the head's own names.
    """

    path: str
    classes: list[str]
    task: str
    standardisation: Standardisation
    state: dict[str, Tensor]

    def is_for(self, classes: list[str], task: str) -> bool:
        """Whether it was trained for these classes, in this order, and this task."""
        return (classes, task) == (self.classes, self.task)

    def load_into(self, head: nn.Module) -> bool:
        """Fills a head that has the same layers, and returns whether it has."""
        shapes = {key: tensor.shape for key, tensor in head.state_dict().items()}
        if shapes != {key: tensor.shape for key, tensor in self.state.items()}:
            return False
        head.load_state_dict(self.state)
        return True


def trained_head(path: str) -> TrainedHead | None:
    """The head in a file of weights, if that is a lit_ft checkpoint; nothing in it is executed."""
    if path.endswith(".safetensors"):
        return None
    try:
        checkpoint = torch_files.load(Path(path).expanduser(), mmap=True)
    except (RuntimeError, pickle.UnpicklingError):
        return None  # in a format, or with something beside the weights, that no checkpoint of lit_ft has
    hparams = all_hyperparameters(checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or not isinstance(hparams.get("classes"), list):
        return None
    units = checkpoint.get("standardisation")
    standardisation = Standardisation.from_plain(units) if units else Standardisation.none(len(hparams["classes"]))
    states = checkpoint.get("state_dict", {}).items()
    # Copies, so that they do not keep the file open.
    state = {key.removeprefix("head."): tensor.clone() for key, tensor in states if key.startswith("head.")}
    return TrainedHead(path, hparams["classes"], str(hparams.get("task")), standardisation, state)


def read_checkpoint(file: str | Path | IO[bytes], weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint, read without running what it holds.

    Args:
        file: Its path, also a remote one, or an open file, which is left where it stands.
        weights_only: False where the user trusts it with running code.
    """
    if isinstance(file, (str, Path)):
        if Path(file).is_file():
            return cast(dict[str, Any], torch_files.load(file, mmap=weights_only, weights_only=weights_only))
        return cast(dict[str, Any], _load(file, "cpu", weights_only))
    start = file.tell()
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=weights_only)
    file.seek(start)
    return checkpoint


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
