"""Decides how weights get into a network: read safely, checked whole, then loaded; or refused."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_ft.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

# What training scripts wrap around a network or its state; lit_ft's own checkpoints hold theirs under `backbone.`.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "backbone")
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")


def is_file_name(weights: str) -> bool:
    """Whether ``--model.weights`` names a file, and not a tag."""
    return weights.endswith(SUFFIXES) or "/" in weights or Path(weights).is_file()


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth``, ``.pt``, ``.safetensors`` or checkpoint file, by name; nothing in it is executed.

    Raises:
        UserError: If there is no such file, it is damaged, holds no tensors, or holds a pickle with code in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"--model.weights: no such file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"--model.weights: not allowed to read {path}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        unsafe = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = "holds more than tensors, which could run code" if unsafe else "damaged, or not written by torch.save"
        raise UserError(f"--model.weights: cannot read {path}: not a file of weights ({reason})") from error
    state = _unwrapped(content)
    if not state:
        raise UserError(f"--model.weights: {path} holds no state dict")
    return state


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The state dict within what a training script saved."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


def without_prefix(state: Mapping[str, Tensor], known: Collection[str]) -> Mapping[str, Tensor]:
    """The state of what stands under ``module.``, ``backbone.`` and the like, where the names are not known so.

    Args:
        state: Tensors by the names that they have in a file.
        known: Names of which the network has tensors.
    """
    while not any(name in known for name in state):
        prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state


def load(
    target: nn.Module, state: Mapping[str, Tensor], needed: Collection[str], source: str, partial: bool = False
) -> None:
    """Loads ``state`` into ``target`` if it fits, and changes nothing if it does not.

    Args:
        target: The module to fill.
        state: Tensors by the names that ``target`` uses.
        needed: The names that ``state`` must have; the others, such as a classifier's, are passed over.
        source: Where ``state`` is from, for the message.
        partial: Whether to load what fits and warn of the rest, as long as anything fits.

    Raises:
        UserError: If a needed tensor is missing or has another shape, or ``state`` has names that ``target`` lacks.
    """
    own = target.state_dict()
    # Counters of batches that old files lack; they do not change what a network computes.
    missing = [n for n in needed if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [n for n in needed if n in state and state[n].shape != own[n].shape]
    problems = [
        f"{len(names)} {title} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    fitting = {n: state[n] for n in needed if n in state and n not in shapes}
    if problems and partial and fitting:
        warnings.warn(
            f"--model.weights: {source} fills {len(fitting)} of {len(needed)}: {'; '.join(problems)}", stacklevel=2
        )
    elif problems:
        hint = "" if not fitting or partial else "; to load what fits: --model.partial_weights true"
        raise UserError(f"--model.weights: {source} is of another network: {'; '.join(problems)}{hint}")
    target.load_state_dict(fitting, strict=False)
