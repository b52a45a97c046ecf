"""Decides how pretrained weights get into a network: read safely, checked whole, then loaded; or refused."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from lit_ft.errors import UserError

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")


def is_file_name(weights: str) -> bool:
    """Whether ``--model.weights`` names a file, and not a tag."""
    return weights.endswith(SUFFIXES) or "/" in weights or Path(weights).is_file()


def download(weights: WeightsEnum) -> dict[str, Tensor]:
    """Published weights, from torch's cache or from the network.

    Raises:
        UserError: If they are not in the cache and cannot be fetched.
    """
    try:
        state: dict[str, Tensor] = dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"--model.weights: could not fetch {weights} ({reason}); put {weights.url} at {place}, name a local file, "
            "or give null for random weights"
        ) from error
    return state


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
    except Exception as error:  # a damaged pickle can fail in any way
        unsafe = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = "holds more than tensors, which could run code" if unsafe else "damaged, or not written by torch.save"
        raise UserError(f"--model.weights: cannot read {path}: not a file of weights ({reason})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"--model.weights: {path} holds no state dict")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def load(target: nn.Module, state: Mapping[str, Tensor], needed: Collection[str], source: str) -> None:
    """Loads ``state`` into ``target`` if it fits, and changes nothing if it does not.

    Args:
        target: The module to fill.
        state: Tensors by the names that ``target`` uses.
        needed: The names that ``state`` must have; the others, such as a classifier's, are passed over.
        source: Where ``state`` is from, for the message.

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
    if problems:
        raise UserError(f"--model.weights: {source} is of another network: {'; '.join(problems)}")
    target.load_state_dict({name: state[name] for name in needed if name in state}, strict=False)
