"""Checkpoints of lit_ft: their content, what they are refused for, and the paths in those that are resumed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from lit_ft.backbones.input_spec import present_options
from lit_ft.backbones.weights import torch_files
from lit_ft.errors import UserError, nearest
from lit_ft.runs import Run, suggest_checkpoint

EXPORTED = (".onnx", ".pt2", ".safetensors")
"""The suffixes of exported files, which are no checkpoints."""

ConfigT = TypeVar("ConfigT")


def read_checkpoint(file: str | Path | IO[bytes], weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint, by a path, also a remote one, or an open file, which is left where it stands.

    What it holds is not run, unless the user trusts it, and so gives ``weights_only`` false.
    """
    checkpoint: dict[str, Any]
    if not isinstance(file, (str, Path)):
        start = file.tell()
        checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)
        file.seek(start)
    elif Path(file).is_file():
        checkpoint = torch_files.load(file, mmap=weights_only, weights_only=weights_only)
    else:
        from lightning.fabric.utilities.cloud_io import get_filesystem  # here, as most files are on this machine

        with get_filesystem(file).open(str(file), "rb") as remote:
            checkpoint = torch.load(remote, map_location="cpu", weights_only=weights_only)
    return checkpoint


def refuse_missing_checkpoint(path: str) -> None:
    """Raises `UserError` with the nearest checkpoint, if there is no file of that path."""
    run = Run(Path(path))
    if os.path.isdir(run.checkpoints):  # also of too long a name
        raise UserError(
            f"`ckpt_path`: {path} is a folder; give {run.checkpoint('last')} to resume, or {run.checkpoint('best')}"
        )
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
    return all_hyperparameters(open_checkpoint(path))


def open_checkpoint(path: str) -> dict[str, Any]:
    """A lit_ft checkpoint, whose tensors are read when they are used.

    Raises:
        UserError: If it does not exist, or is not a lit_ft checkpoint.
    """
    refuse_missing_checkpoint(path)
    try:
        checkpoint = torch_files.load(path, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        is_exported = Path(path).suffix.lower() in EXPORTED
        hint = "; what lit-ft export writes is for lit-ft predict, test and verify" if is_exported else ""
        raise UserError(f"`ckpt_path`: {path} is not a checkpoint, or it is damaged{hint}") from error
    if "backbone" not in all_hyperparameters(checkpoint):
        raise UserError(f"`ckpt_path`: {path} is no lit_ft checkpoint; to start from its weights use `model.weights`")
    return cast(dict[str, Any], checkpoint)


def all_hyperparameters(checkpoint: Any) -> dict[str, Any]:
    """The hyperparameters in a checkpoint, also those that a subclass's constructor does not take; none in others."""
    content = checkpoint if isinstance(checkpoint, dict) else {}
    found = content.get("all_hyper_parameters", content.get("hyper_parameters"))
    hparams = dict(found) if isinstance(found, dict) else {}
    if isinstance(images := hparams.get("input"), dict):
        hparams["input"] = present_options(images)
        if content.get("sees_whole_images") and "size" in images:  # where the first release recorded it
            hparams["input"] |= {"fit": "squash", "resize": images["size"]}
    return hparams


def saved_options(path: str) -> dict[str, Any]:
    """The options of the run that wrote a checkpoint, as of `run_options`; none where it does not tell them."""
    options = torch_files.load(path, mmap=True).get("run_options")
    return dict(options) if isinstance(options, dict) else {}


def as_config(cls: type[ConfigT], given: Any) -> ConfigT:
    """The dataclass itself, or built from the dict that a checkpoint holds."""
    return cls(**given) if isinstance(given, dict) else cast(ConfigT, given)


def forget_files_elsewhere(trainer: Any) -> None:
    """Removes from checkpoint callbacks the paths of earlier checkpoints that are outside of their folders.

    Lightning removes the last best checkpoint, with all that is below it, by the path that is in the present one. Its
    own check of where that is takes ``..`` for a folder, and passes all that has a protocol, also ``local://``.
    """
    for callback in trainer.checkpoint_callbacks:
        folder = str(callback.dirpath)
        for name in ("best_model_path", "last_model_path"):
            if not _is_within(str(getattr(callback, name, "")), folder):
                setattr(callback, name, "")
        ranked = (*getattr(callback, "best_k_models", ()), getattr(callback, "kth_best_model_path", ""))
        if not all(_is_within(str(path), folder) for path in ranked):
            callback.best_k_models, callback.kth_best_model_path = {}, ""


def follow_moved_folder(checkpoint: Mapping[str, Any], trainer: Any) -> None:
    """Lets checkpoint callbacks find what is in the folder of the checkpoint that is resumed, wherever it was before.

    Lightning takes a folder that was moved or renamed for another one and forgets the best score, so that the next
    epoch replaced the best checkpoint, however much worse it was.
    """
    states = checkpoint.get("callbacks") or {}
    for callback in trainer.checkpoint_callbacks:
        state: Any = states.get(callback.state_key)
        folder = str(callback.dirpath)
        earlier = state.get("dirpath") if isinstance(state, dict) else None
        if not isinstance(earlier, str) or earlier == folder:
            continue
        if os.path.realpath(folder) != os.path.realpath(os.path.dirname(os.path.abspath(str(trainer.ckpt_path)))):
            continue
        places = {f"{earlier}/{path.name}": str(path) for path in Path(folder).glob("*.ckpt")}
        if state.get("best_model_path") not in places:
            continue  # moved in part
        state["dirpath"] = folder
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            state[name] = places.get(state.get(name), "")
        ranked = state.get("best_k_models") or {}
        state["best_k_models"] = {places[path]: score for path, score in ranked.items() if path in places}


def _is_within(path: str, folder: str) -> bool:
    """Whether a path is within a folder, or a plain one, of which Lightning sees rightly whether it is."""
    if "://" in path or "::" in path:
        return path.startswith(f"{folder.rstrip('/')}/") and ".." not in path.split("/")
    return ".." not in Path(path).parts or Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
