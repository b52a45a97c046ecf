"""Hyperparameters as plain values, also of subclasses with a signature of their own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from types import FrameType
from typing import Any, TypeVar, cast

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lit_ft.backbones.weights.torch_files import plain
from lit_ft.compat import collect_constructor_arguments

ConfigT = TypeVar("ConfigT")


def as_config(cls: type[ConfigT], given: Any) -> ConfigT:
    """The dataclass itself, or built from the dict that a checkpoint holds."""
    return cls(**given) if isinstance(given, dict) else cast(ConfigT, given)


class PlainHyperparameters(HyperparametersMixin):
    """Plain hyperparameters, of which a checkpoint gives a subclass those that its own constructor takes."""

    _given: Collection[str] = ()

    def collect_hyperparameters(self, **settled: Any) -> None:
        """Collects the arguments of a constructor, and of those of its subclasses, as Lightning does.

        Args:
            **settled: What replaces and adds to them.
        """
        frame = inspect.currentframe()
        constructor = cast(FrameType, cast(FrameType, frame).f_back)
        self._given = sorted(collect_constructor_arguments(constructor)[-1])
        super().save_hyperparameters(frame=constructor)
        self.hparams.update(settled)
        self.hparams.update(plain(dict(self.hparams)))

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Adds those of a subclass, as Lightning does; those that are settled stay."""
        settled = dict(self.hparams)
        frame = inspect.currentframe()
        super().save_hyperparameters(*args, **{"frame": frame and frame.f_back, **options})
        self.hparams.update({**plain(dict(self.hparams)), **settled})

    @property
    def hparams_initial(self) -> Any:
        """The hyperparameters, for loggers: not as they were given, but as plain values."""
        return copy.deepcopy(self.hparams)

    def write_hyperparameters(self, checkpoint: dict[str, Any], base: type) -> None:
        """Puts into a checkpoint what the constructor takes, and where that is not all, beside it all of them.

        Args:
            checkpoint: The content of the checkpoint.
            base: The class that names all hyperparameters but a subclass's own.
        """
        if type(self) is not base:
            hparams = checkpoint["all_hyper_parameters"] = dict(self.hparams)
            checkpoint["hyper_parameters"] = for_constructor(type(self), hparams, self._given, base)


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
