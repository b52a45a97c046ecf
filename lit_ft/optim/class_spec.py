"""Optimizer and scheduler classes, and functions for them, named by path."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_ft.errors import UserError

ClassSpec = str | dict[str, Any]

# The base that a named class must have, before it is called.
_BASES: dict[str, type[Any]] = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}

_HOMES = ("torch.optim", "torch.optim.lr_scheduler", "lit_ft.optim")


def resolve_class(spec: ClassSpec, key: str) -> tuple[type[Any], dict[str, Any]]:
    """The class that ``spec`` names, and the arguments for it.

    Args:
        spec: A name in ``torch.optim``, a dotted path, or ``{"class_path": ..., "init_args": {...}}``.
        key: The option, ``optimizer`` or ``lr_scheduler``.

    Raises:
        UserError: If there is no such class, or it is of another kind.
    """
    path, options = (spec, {}) if isinstance(spec, str) else (spec["class_path"], dict(spec.get("init_args") or {}))
    base = _BASES[key]
    found = [thing for thing in _import(path, key, () if "." in path else _HOMES) if isinstance(thing, type)]
    fitting = [cls for cls in found if issubclass(cls, base)]
    if not fitting:
        what = f"{path!r} is no class derived from {base.__name__}" if found else f"there is no class {path!r}"
        raise UserError(f"`{key}`: {what}")
    return fitting[0], options


def resolve_functions(named: Any) -> Any:
    """The function at a dotted path, or one for each path of a list; anything else unchanged.

    Raises:
        UserError: If there is no such function.
    """
    if isinstance(named, (list, tuple)):
        return [resolve_functions(one) for one in named]
    if not isinstance(named, str):
        return named
    found = [thing for thing in _import(named, "lr_scheduler", ()) if callable(thing)]
    if not found:
        raise UserError(f"`lr_scheduler`: there is no function {named!r}")
    return found[0]


def _import(path: str, key: str, homes: Sequence[str]) -> list[Any]:
    """The objects at a dotted path, or with a bare name in its possible homes."""
    module, _, name = path.rpartition(".")
    try:
        return [getattr(importlib.import_module(home), name, None) for home in homes or (module or "builtins",)]
    except ImportError as error:
        raise UserError(f"`{key}`: cannot import {path!r} ({error})") from error
