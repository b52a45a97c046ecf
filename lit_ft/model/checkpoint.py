"""Checkpoints of lit_ft: reading them, and what they hold of their run, with its trained head."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch import Tensor, nn

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.console import rank_zero_print
from lit_ft.errors import UserError, nearest
from lit_ft.runs import suggest_checkpoint
from lit_ft.tasks.standardisation import Standardisation


def read_checkpoint(file: str | Path | IO[bytes], weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint, read without running what it holds.

    Args:
        file: Its path, also a remote one, or an open file, which is left where it stands.
        weights_only: False where the user trusts it with running code.
    """
    checkpoint: dict[str, Any]
    if not isinstance(file, (str, Path)):
        start = file.tell()
        checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)
        file.seek(start)
    elif Path(file).is_file():
        checkpoint = torch_files.load(file, mmap=weights_only, weights_only=weights_only)
    else:
        with get_filesystem(file).open(str(file), "rb") as remote:
            checkpoint = torch.load(remote, map_location="cpu", weights_only=weights_only)
    return checkpoint


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
    hparams = all_hyperparameters(checkpoint)
    if "backbone" not in hparams:
        raise UserError(f"`ckpt_path`: {path} is no lit_ft checkpoint; to start from its weights use `model.weights`")
    return hparams


def all_hyperparameters(checkpoint: Any) -> dict[str, Any]:
    """The hyperparameters in a checkpoint, also those that a subclass's constructor does not take; none in others."""
    content = checkpoint if isinstance(checkpoint, dict) else {}
    hparams = content.get("all_hyper_parameters", content.get("hyper_parameters"))
    return dict(hparams) if isinstance(hparams, dict) else {}


def saved_options(path: str) -> dict[str, Any]:
    """The options of the run that wrote a checkpoint, as of `run_options`; none where it does not tell them."""
    options = torch_files.load(path, mmap=True).get("run_options")
    return dict(options) if isinstance(options, dict) else {}


@dataclass(frozen=True)
class TrainedHead:
    """The head in a lit_ft checkpoint, with its tensors by the head's own names."""

    path: str
    classes: list[str]
    task: str
    standardisation: Standardisation
    state: dict[str, Tensor]

    def load_into(self, head: nn.Module, classes: list[str], task: str) -> Standardisation | None:
        """Loads the tensors into a new head, if it is for the same classes and task and fits, and prints whether.

        For regression it returns mean and scale of the targets that the loaded head was trained on.
        """
        if (classes, task) != (self.classes, self.task):
            return None
        new = head.state_dict()
        if new.keys() != self.state.keys() or any(new[key].shape != self.state[key].shape for key in new):
            rank_zero_print(f"Head  new, as that of {self.path} has other layers")
            return None
        head.load_state_dict(self.state)
        rank_zero_print(f"Head  that of {self.path}, which was trained for the same {len(classes)} classes")
        return self.standardisation if task == "regression" else None


def read_trained_head(path: str | None) -> TrainedHead | None:
    """The head in a file of weights, if that is a lit_ft checkpoint; nothing in it is executed."""
    if path is None or not is_file_name(path) or path.endswith(".safetensors"):
        return None
    try:
        checkpoint = torch_files.load(Path(path).expanduser(), mmap=True)
    except (RuntimeError, pickle.UnpicklingError):
        return None  # a format, or content beside the weights, that no checkpoint of lit_ft has
    hparams = all_hyperparameters(checkpoint)
    if not isinstance(hparams.get("classes"), list):
        return None
    units = checkpoint.get("standardisation")
    standardisation = Standardisation.from_plain(units) if units else Standardisation.none(len(hparams["classes"]))
    states = checkpoint.get("state_dict", {}).items()
    # Copies, so that they do not keep the file open.
    state = {key.removeprefix("head."): tensor.clone() for key, tensor in states if key.startswith("head.")}
    return TrainedHead(path, hparams["classes"], str(hparams.get("task")), standardisation, state)


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
