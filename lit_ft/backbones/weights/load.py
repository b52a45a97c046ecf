"""Loading of weights: read without running code, found in what training scripts save, then loaded or refused."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_ft.backbones.weights import torch_files
from lit_ft.compat import loads_in_its_own_way, set_state_versions, state_versions
from lit_ft.errors import UserError, unknown

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")

# What stands beside weights in many a file: options, paths, and numbers of numpy's. It is read as nothing.
_BESIDE = (
    "argparse.Namespace",
    *(f"pathlib{home}.{kind}" for home in ("", "._local") for kind in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *(f"numpy.{core}.multiarray.{what}" for core in ("core", "_core") for what in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray", "_codecs.encode"),
)

# Training scripts' names of the state, and of modules around a network, for files of which no name is known.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "backbone")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")


class State(OrderedDict[str, Tensor]):
    """Tensors by name, with the versions of the modules that wrote them (`lit_ft.compat.state_versions`)."""


@dataclass(frozen=True)
class _Found:
    """Where in a file a network's tensors are: ``key`` ends with a dot, or is empty; ``share`` is how many of them."""

    key: str
    state: State
    share: float


class _Nothing:
    """What a file holds beside weights, made of anything and without an effect."""

    def __new__(cls, *args: Any) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Takes nothing."""


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
        with torch.serialization.safe_globals([(_Nothing, name) for name in _BESIDE]):
            saved = load_file(path) if path.suffix == ".safetensors" else torch_files.load(path)
    except PermissionError as error:
        raise UserError(f"`model.weights`: not allowed to read {path}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        unsafe = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        reason = "holds more than tensors, which could run code" if unsafe else "damaged, or not written by torch.save"
        raise UserError(f"`model.weights`: cannot read {path}: not a file of weights ({reason})") from error
    return _state_of(saved, namings, key, path)


def as_loaded(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors by the network's current names, where its own loading converts those of earlier versions.

    A copy of the network without data loads them, and keeps the tensors that it is given.
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
    """Loads ``state``, which comes from ``source``, into ``target`` if it fits, and changes nothing if it does not.

    Names that are not ``needed``, such as a classifier's, are ignored. With ``partial``, the tensors that fit, if any,
    are loaded, and the others warned of.

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
        what_fits = "to load what fits: `model.partial_weights` true"
        hint = what_fits if fitting else "give that network as `model.backbone`"
        raise UserError(f"`model.weights`: {source} is of another network: {'; '.join(problems)}; {hint}")
    current = State(fitting)
    set_state_versions(current, state_versions(own))  # some networks load nothing without their version
    target.load_state_dict(current, strict=False)


def _state_of(content: Any, namings: Sequence[Collection[str]], key: str | None, path: Path) -> State:
    """The state dict of a network within what a training script saved; see `read`."""
    places = list(_places(content))
    if not any(state for _, state in places):
        raise UserError(f"`model.weights`: {path} holds no state dict")
    found = [fit for place, state in places for names in namings for fit in _fits(place, state, names)]
    if key is not None:
        chosen = [fit for fit in found if f".{key}." in f".{fit.key}"]
        if not chosen:
            keys = [fit.key.rstrip(".") for fit in _best(found)] or [place.rstrip(".") for place, _ in places]
            raise unknown(f"key of {path}", key, filter(None, keys), "`model.weights_key`")
        found = chosen
    elif isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        found = [fit for fit in found if fit.key.startswith("state_dict.")]  # beside it can be what is averaged of it
    best = _best(found)
    if len(best) > 1:
        keys = [fit.key.rstrip(".") for fit in best]
        raise UserError(
            f"`model.weights`: {path} holds weights of this network under {', '.join(keys[:-1])} and {keys[-1]}; "
            f"choose with `model.weights_key` {keys[-1]}"
        )
    if best and (key is not None or best[0].share >= 0.5):  # of the network's tensors: these names are its own
        return best[0].state
    # Of another network, or in names that are yet to be changed.
    return _without_prefix(_unwrapped(content), {name for names in namings for name in names})


def _places(content: Any, place: str = "", depth: int = 4) -> Iterator[tuple[str, State]]:
    """The tensors of each mapping in what was saved, with its keys."""
    if not isinstance(content, Mapping):
        return
    yield place, _state(content)
    for key, inner in content.items() if depth else ():
        yield from _places(inner, f"{place}{key}.", depth - 1)


def _state(tensors: Mapping[Any, Any], prefix: str = "") -> State:
    """The tensors whose names begin with a prefix, without it, and the versions of their modules."""
    named = ((str(name), value) for name, value in tensors.items() if isinstance(value, Tensor))
    state = State((name[len(prefix) :], value) for name, value in named if name.startswith(prefix))
    # A prefix ends with a dot, a module's own name does not.
    versions = {
        f"{module}."[len(prefix) :].rstrip("."): dict(version)
        for module, version in state_versions(tensors).items()
        if f"{module}.".startswith(prefix)
    }
    set_state_versions(state, versions)
    return state


def _fits(place: str, state: State, names: Collection[str]) -> list[_Found]:
    """Beginnings of the names in a state dict after which a network's own names follow."""
    # Old files lack counters of batches, and averaged weights as well.
    wanted = {name for name in names if not name.endswith("num_batches_tracked")}
    counts = Counter(
        name[:start]
        for name in state
        for start in [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        if name[start:] in wanted
    )
    return [_Found(place + prefix, _state(state, prefix), count / len(wanted)) for prefix, count in counts.items()]


def _best(found: list[_Found]) -> list[_Found]:
    """Those that could be meant, with 0.9 of the best one's share; what lies within a better one, as a part, is not."""
    ranked = sorted(found, key=lambda fit: (-fit.share, len(fit.key)))
    best: list[_Found] = []
    for fit in ranked:
        if fit.share >= 0.9 * ranked[0].share and not any(fit.key.startswith(other.key) for other in best):
            best.append(fit)
    return best


def _unwrapped(content: Mapping[str, Any]) -> State:
    """What the usual wrappers hold, or else the most tensors."""
    inner: Any = content
    while isinstance(inner, Mapping):
        state = _state(inner)
        inner = next((inner[key] for key in _WRAPPERS if isinstance(inner.get(key), Mapping)), None)
    return state or max((state for _, state in _places(content)), key=len)


def _without_prefix(state: State, known: set[str]) -> State:
    """The state of what stands under ``module.``, ``backbone.`` and the like, where the names are not known so."""
    while known.isdisjoint(state) and (
        prefix := next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in state)), None)
    ):
        state = _state(state, prefix)
    return state
