"""Hyperparameters of a module as plain values, and those that a subclass with a signature of its own takes."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import FrameType, FunctionType
from typing import Any

import numpy as np
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.parsing import collect_init_args


def plain(value: Any) -> Any:
    """A value as YAML has it, and as a checkpoint may that loads with ``weights_only=True``.

    Dataclasses are dicts, tuples lists, numpy's numbers Python's, and functions, classes and paths text.

    >>> plain({"size": (32, np.float64(0.5)), "at": PurePath("a/b")})
    {'size': [32, 0.5], 'at': 'a/b'}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.generic, Enum)):
        return plain(value.item() if isinstance(value, np.generic) else value.value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (FunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def names_given(frame: FrameType | None) -> list[str]:
    """The names of all arguments that the outermost constructor was given, of those that led to a frame."""
    if frame is None:
        return []
    *_, outermost = collect_init_args(frame, [], classes=(HyperparametersMixin,))
    return sorted(outermost)


def for_constructor(cls: type, hparams: Mapping[str, Any], given: Collection[str], base: type) -> dict[str, Any]:
    """Those of some hyperparameters that a constructor takes, so that what a subclass sets itself is left to it.

    Args:
        cls: Its class, derived from ``base``.
        hparams: All hyperparameters.
        given: The names of those that the constructor was given, when the hyperparameters came to be.
        base: The class that names the others.

    >>> class Base:
    ...     def __init__(self, backbone, lr=0.1): ...
    >>> class Own(Base):
    ...     def __init__(self, size=1, **others):
    ...         super().__init__("mnist_cnn", **others)
    >>> for_constructor(Own, {"backbone": "mnist_cnn", "lr": 0.2, "size": 2, "more": 3}, ["lr", "size"], Base)
    {'lr': 0.2, 'size': 2}
    """
    parameters = inspect.signature(cls).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    names = {parameter.name for parameter in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # whose names nobody knows
        names |= set(inspect.signature(base).parameters)
    elif inspect.Parameter.VAR_KEYWORD in kinds:
        names |= set(given)
    return {name: value for name, value in hparams.items() if name in names}
