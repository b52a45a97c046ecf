"""Hyperparameters of a module as plain values, and modules made of them again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from types import FrameType, MappingProxyType
from typing import Any, TypeVar, cast

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.compat import NO_INSTANTIATOR, collect_constructor_arguments
from lit_ft.errors import UserError
from lit_ft.model.checkpoint import read_checkpoint

ModuleT = TypeVar("ModuleT", bound="PlainHyperparameters")

_NOT_HELD = "arguments_not_held"


class PlainHyperparameters(HyperparametersMixin):
    """Plain hyperparameters, of which a checkpoint gives a subclass those that its own constructor takes.

    A module is loaded with them without running code of its checkpoint; to be mixed in before ``LightningModule``.
    """

    unverified_options: Collection[str] = ()
    """The options that name classes, and were taken from the checkpoint."""
    _given: Collection[str] = ()
    _not_storable: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def load_from_checkpoint(
        cls: type[ModuleT],
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **options: Any,
    ) -> ModuleT:
        """The module that a checkpoint holds, as `lightning.pytorch.LightningModule.load_from_checkpoint` makes it.

        It is in eval mode; a fit lets it train again. The checkpoint runs no code of its own: it opens no file of
        weights, and a network, an optimizer or a schedule of your own must be named here, too, as in
        ``backbone={...}``, unless a subclass names it. So must those arguments of a subclass that no checkpoint holds:
        modules, functions, classes, and what else is neither a plain value nor a tensor.

        Args:
            checkpoint_path: The checkpoint.
            map_location: The devices that its tensors go to.
            hparams_file: A file of arguments that take the place of those in the checkpoint.
            strict: Whether each tensor must be there.
            weights_only: False lets a checkpoint that you trust run code.
            options: Arguments that take the place of those in the checkpoint.

        Raises:
            UserError: If the checkpoint names a network that is not of lit_ft, torch, torchvision or timm, or if an
                argument is missing that it does not hold.
        """
        checkpoint = read_checkpoint(checkpoint_path, weights_only is not False)
        for name in () if hparams_file else checkpoint.get(_NOT_HELD, ()):
            if name not in options:
                raise UserError(
                    f"`{name}`: is neither a plain value nor a tensor, and so in no checkpoint; give it, too: "
                    f"load_from_checkpoint(..., {name}=...)"
                )
        saved = {} if hparams_file else saved_arguments(checkpoint, inspect.signature(cls).parameters)
        if "backbone" not in options:
            refuse_foreign(saved.get("backbone"), None)
        if saved.get("weights") is not None:
            options.setdefault("weights", None)
        unverified = [key for key in ("optimizer", "lr_scheduler") if key in saved and key not in options]
        options |= NO_INSTANTIATOR
        if weights_only is not None:  # older releases of Lightning do not know it
            options["weights_only"] = weights_only
        load: Any = super().load_from_checkpoint  # type: ignore[misc]  # that of the module it is mixed into
        module: Any = load(checkpoint_path, map_location, hparams_file, strict, **options)
        module.unverified_options = unverified
        return cast(ModuleT, module.eval())

    def collect_hyperparameters(self, **settled: Any) -> None:
        """Collects the arguments of a constructor and of its subclasses, as Lightning does, and what is settled."""
        frame = inspect.currentframe()
        constructor = cast(FrameType, cast(FrameType, frame).f_back)
        self._given = sorted(collect_constructor_arguments(constructor)[-1])
        super().save_hyperparameters(frame=constructor)
        self._note_not_storable()
        self.hparams.update(settled)
        self.hparams.update(torch_files.plain(dict(self.hparams)))

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Adds those of a subclass, as Lightning does; those that are settled stay."""
        settled = dict(self.hparams)
        frame = inspect.currentframe()
        super().save_hyperparameters(*args, **{"frame": frame and frame.f_back, **options})
        self._note_not_storable()
        self.hparams.update({**torch_files.plain(dict(self.hparams)), **settled})

    def _note_not_storable(self) -> None:
        """Notes values as they were given, before the hyperparameters have text in their place."""
        found = {name: value for name, value in self.hparams.items() if not torch_files.is_storable(value)}
        self._not_storable = {**self._not_storable, **found}

    def not_held(self, base: type) -> dict[str, Any]:
        """The arguments that no checkpoint holds, and that are not the defaults of the constructor of this class.

        Options of ``base`` are all held: it takes functions and classes by their names, too.
        """
        parameters, known = inspect.signature(type(self)).parameters, inspect.signature(base).parameters
        given = for_constructor(type(self), self._not_storable, self._given, base)
        defaults = {name: parameter.default for name, parameter in parameters.items()}
        return {name: value for name, value in given.items() if name not in known and value is not defaults.get(name)}

    @property
    def hparams_initial(self) -> Any:
        """The hyperparameters, for loggers: not as they were given, but as plain values."""
        return copy.deepcopy(self.hparams)

    def write_hyperparameters(self, checkpoint: dict[str, Any], base: type) -> None:
        """Puts into a checkpoint of a subclass of ``base`` what its constructor takes, and beside it all of them.

        Those that it does not hold are named, so that who loads it gives them again.
        """
        if type(self) is not base:
            own = self._not_storable.keys() - inspect.signature(base).parameters.keys()
            held = {name: value for name, value in self.hparams.items() if name not in own}
            hparams = {name: value for name, value in held.items() if torch_files.is_storable(value)}
            checkpoint["all_hyper_parameters"] = hparams
            checkpoint[_NOT_HELD] = sorted(self.not_held(base))
            checkpoint["hyper_parameters"] = for_constructor(type(self), hparams, self._given, base)


def for_constructor(cls: type, hparams: Mapping[str, Any], given: Collection[str], base: type) -> dict[str, Any]:
    """Those hyperparameters that a constructor takes, so that what a subclass sets itself is left to it.

    With ``*args`` it takes what that of ``base`` does, and with ``**kwargs`` what it was given when it was called.

    >>> class Base:
    ...     def __init__(self, backbone, lr=0.1): ...
    >>> class Own(Base):
    ...     def __init__(self, size=1, **others):
    ...         super().__init__("mnist_cnn", **others)
    >>> for_constructor(Own, {"backbone": "mnist_cnn", "lr": 0.2, "size": 2, "more": 3}, ["lr", "size"], Base)
    {'lr': 0.2, 'size': 2}
    """
    parameters = inspect.signature(cls).parameters
    names, kinds = set(parameters), {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:  # whose names nobody knows
        names |= set(inspect.signature(base).parameters)
    elif inspect.Parameter.VAR_KEYWORD in kinds:
        names |= set(given)
    return {name: value for name, value in hparams.items() if name in names}


def saved_arguments(checkpoint: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments that Lightning makes a module of a checkpoint with, by the parameters of the module's class."""
    saved: dict[str, Any] = {}
    for key in ("hparams", "module_arguments", "hyper_parameters"):  # the first two are those of Lightning before 0.8
        saved |= checkpoint.get(key) or {}
    names = {key for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    whole = checkpoint.get("hparams_name")  # of the one argument that takes them all
    if whole in names:
        saved = {whole: saved}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in saved.items() if takes_any or key in names}
