"""Decides which checkpoint a command means, and what the run was that wrote it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lit_ft.errors import UserError, nearest


def best_checkpoint(trainer: Any) -> Any:
    """The callback that keeps the best checkpoint: of those that watch a metric the last, as the user's come first."""
    return next((callback for callback in reversed(trainer.checkpoint_callbacks) if callback.monitor), None)


def newest(folder: str, name: str) -> str:
    """The newest ``best`` or ``last`` checkpoint of the runs in a folder.

    Raises:
        UserError: If there is none.
    """
    found = _by_age(folder, f"*/checkpoints/{name}.ckpt")
    if not found:
        raise UserError(f"--ckpt_path: there is no {folder}/*/checkpoints/{name}.ckpt")
    return str(found[-1])


def whole_checkpoints(folder: Path) -> str:
    """What is left in a folder of checkpoints where no more can be written, and what to do about it."""
    found = _by_age(str(folder), "*.ckpt")
    if not found:
        return "no checkpoint was written before; make room, and start again"
    return f"whole are {', '.join(file.name for file in found)}; make room, and resume from {found[-1]}"


def hyper_parameters(path: str | None, command: str, root: str) -> dict[str, Any]:
    """The hyperparameters in a lit_ft checkpoint.

    Args:
        path: The checkpoint, or ``None`` where the user gave none.
        command: The command that needs it, for the message.
        root: The folder of all runs, to find one that the user could have meant.

    Raises:
        UserError: If no file is given, it does not exist, or is not a lit_ft checkpoint.
    """
    if path is None:
        found = _by_age(root, "*/*/checkpoints/best.ckpt")
        hint = f"; the newest is {found[-1]}" if found else ""
        raise UserError(f"--ckpt_path: lit-ft {command} needs the checkpoint of a run{hint}")
    if not Path(path).is_file():
        near = nearest(str(path), map(str, Path(path).parent.glob("*.ckpt")), most=1)
        raise UserError(f"--ckpt_path: no such file: {path}" + (f"; nearest: {near[0]}" if near else ""))
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise UserError(f"--ckpt_path: {path} is not a checkpoint, or it is damaged") from error
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or "backbone" not in hparams:
        raise UserError(f"--ckpt_path: {path} is no lit_ft checkpoint; to start from its weights use --model.weights")
    return dict(hparams)


def _by_age(folder: str, pattern: str) -> list[Path]:
    """The files that match, the newest last."""
    return sorted(Path(folder).glob(pattern), key=lambda file: file.stat().st_mtime)
