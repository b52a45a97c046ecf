"""Loading of weights: read without running code, checked as a whole, then loaded or refused."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from lit_ft.backbones.weights.state_dicts import State, content, state_of
from lit_ft.compat import loads_in_its_own_way, set_state_versions, state_versions
from lit_ft.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


def is_file_name(weights: str) -> bool:
    """Whether ``model.weights`` names a file, and not a tag."""
    return weights.endswith(SUFFIXES) or "/" in weights or Path(weights).is_file()


def read(path: str | Path, namings: Sequence[Collection[str]] = (), key: str | None = None) -> State:
    """The tensors of a ``.pth``, ``.pt``, ``.safetensors`` or checkpoint file, by name; nothing in it is executed.

    Args:
        path: The file.
        namings: Names of which the network has tensors, each a whole set of them; what is wrapped around them is left
            out.
        key: Which of several state dicts in the file.

    Raises:
        UserError: If there is no such file, it is damaged, holds no tensors, or holds a pickle with code in it; or
            if it has several state dicts of the network and ``key`` does not say which.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"`model.weights`: no such file: {path}")
    try:
        saved = load_file(path) if path.suffix == ".safetensors" else content(path)
    except PermissionError as error:
        raise UserError(f"`model.weights`: not allowed to read {path}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        unsafe = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = "holds more than tensors, which could run code" if unsafe else "damaged, or not written by torch.save"
        raise UserError(f"`model.weights`: cannot read {path}: not a file of weights ({reason})") from error
    return state_of(saved, namings, key, path)


def as_loaded(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by the network's current names, where its own loading converts those of earlier versions.

    A copy of the network without data loads them, and keeps the tensors that it is given.

    Args:
        module: The network.
        state: Tensors by name, with the versions of the modules that wrote them, if known.
    """
    if not loads_in_its_own_way(module):
        return state
    own = module.state_dict(keep_vars=True)
    blank = {id(tensor): tensor.detach().to("meta") for tensor in own.values()}
    blank |= {id(parameter): nn.Parameter(blank[id(parameter)], False) for parameter in module.parameters()}
    copy = deepcopy(module, blank)
    kept = {name: tensor for name, tensor in state.items() if name in own and own[name].shape != tensor.shape}
    given = State((name, tensor) for name, tensor in state.items() if name not in kept)
    # Files of other formats than torch's have no version; the current one is the likely one.
    versions = state_versions(state)
    set_state_versions(given, {**versions, "": {**state_versions(own).get("", {}), **versions.get("", {})}})
    unexpected = copy.load_state_dict(given, strict=False, assign=True).unexpected_keys
    loaded = {name: tensor for name, tensor in copy.state_dict().items() if not tensor.is_meta}
    return {**loaded, **kept, **{name: given[name] for name in unexpected}}


def load(
    target: nn.Module, state: Mapping[str, Tensor], needed: Collection[str], source: str, partial: bool = False
) -> None:
    """Loads ``state`` into ``target`` if it fits, and changes nothing if it does not.

    Args:
        target: The module to fill.
        state: Tensors by the names that ``target`` uses.
        needed: The names that ``state`` must have; others, such as a classifier's, are ignored.
        source: The origin of ``state``, for messages.
        partial: Whether to load the tensors that fit, if any, and warn of the others.

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
            f"`model.weights`: {source} fills {len(fitting)} of {len(needed)}: {'; '.join(problems)}", stacklevel=2
        )
    elif problems:
        hint = "" if not fitting or partial else "; to load what fits: `model.partial_weights` true"
        raise UserError(f"`model.weights`: {source} is of another network: {'; '.join(problems)}{hint}")
    current = State(fitting)
    set_state_versions(current, state_versions(own))  # some networks load nothing without their version
    target.load_state_dict(current, strict=False)
