"""State dicts in what training scripts save: where they are in a file, and which of them is of a network."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_ft.backbones.weights import torch_files
from lit_ft.compat import set_state_versions, state_versions
from lit_ft.errors import UserError, unknown

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

# Share of a network's tensors from which on names are taken to be its own, and share of the best from which on another
# state dict could as well be the one that is meant.
_MOST = 0.5
_RIVAL = 0.9


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


def content(path: Path) -> Any:
    """What `torch.save` wrote, as far as that is tensors and plain values; nothing in it is executed."""
    with torch.serialization.safe_globals([(_Nothing, name) for name in _BESIDE]):
        return torch_files.load(path)


def state_of(
    content: Any, namings: Sequence[Collection[str]] = (), key: str | None = None, path: str | Path = ""
) -> State:
    """The state dict of a network within what a training script saved.

    Args:
        content: What was saved.
        namings: Names of which the network has tensors, each a whole set of them.
        key: The user's choice: keys in the file and the beginning of names, with dots in between.
        path: The file, for the message.

    Raises:
        UserError: If there is none, or there are several and no ``key`` says which, or it says none of them.
    """
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
    if best and (key is not None or best[0].share >= _MOST):
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
    counts: Counter[str] = Counter()
    for name in state:
        start = 0
        while start >= 0:
            if name[start:] in wanted:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    return [_Found(place + prefix, _state(state, prefix), count / len(wanted)) for prefix, count in counts.items()]


def _best(found: list[_Found]) -> list[_Found]:
    """Those that could be meant: what lies within a better one, as a part of it, is not."""
    ranked = sorted(found, key=lambda fit: (-fit.share, len(fit.key)))
    best: list[_Found] = []
    for fit in ranked:
        if fit.share >= _RIVAL * ranked[0].share and not any(fit.key.startswith(other.key) for other in best):
            best.append(fit)
    return best


def _unwrapped(content: Mapping[str, Any]) -> State:
    """What the usual wrappers hold, or else the most tensors."""
    inner: Any = content
    while isinstance(inner, Mapping):
        state = _state(inner)
        inner = next((inner[key] for key in _WRAPPERS if isinstance(inner.get(key), Mapping)), None)
    return state or max((state for _, state in _places(content)), key=len)


def _without_prefix(state: State, known: Collection[str]) -> State:
    """The state of what stands under ``module.``, ``backbone.`` and the like, where the names are not known so."""
    while not any(name in known for name in state):
        prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        state = _state(state, prefix)
    return state
