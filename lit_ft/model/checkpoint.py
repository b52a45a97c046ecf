"""Checkpoints of lit_ft: hyperparameters as plain values, and modules made of them again."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeVar, cast

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.compat import NO_INSTANTIATOR, collect_constructor_arguments
from lit_ft.errors import UserError, nearest
from lit_ft.runs import Run, suggest_checkpoint

EXPORTED = (".onnx", ".pt2", ".safetensors")
"""The suffixes of exported files, which are no checkpoints."""

ConfigT = TypeVar("ConfigT")
ModuleT = TypeVar("ModuleT", bound="PlainHyperparameters")


def read_checkpoint(file: str | Path | IO[bytes], weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint, by a path, also a remote one, or an open file, which is left where it stands.

    What it holds is not run, unless the user trusts it, and so gives ``weights_only`` false.
    """
    checkpoint: dict[str, Any]
    if not isinstance(file, (str, Path)):
        start = file.tell()
        checkpoint = torch.load(file, map_location="cpu", weights_only=weights_only)
        file.seek(start)
    elif Path(file).is_file():
        checkpoint = torch_files.load(file, mmap=weights_only, weights_only=weights_only)
    else:
        with get_filesystem(file).open(str(file), "rb") as remote:
            checkpoint = torch.load(remote, map_location="cpu", weights_only=weights_only)
    return checkpoint


def refuse_missing_checkpoint(path: str) -> None:
    """Raises `UserError` with the nearest checkpoint, if there is no file of that path."""
    run = Run(Path(path))
    if os.path.isdir(run.checkpoints):  # also of too long a name
        raise UserError(
            f"`ckpt_path`: {path} is a folder; give {run.checkpoint('last')} to resume, or {run.checkpoint('best')}"
        )
    if not Path(path).is_file():
        near = nearest(str(path), map(str, Path(path).parent.glob("*.ckpt")), most=1)
        raise UserError(f"`ckpt_path`: no such file: {path}" + (f"; nearest: {near[0]}" if near else ""))


def hyper_parameters(path: str | None, command: str, root: str, configs: Sequence[Any] = ()) -> dict[str, Any]:
    """The hyperparameters in a lit_ft checkpoint.

    Args:
        path: The checkpoint, or ``None`` where the user gave none.
        command: The command that needs it, for the message.
        root: The folder of all runs, to find one that the user could have meant.
        configs: The configs that the user gave; that of a run has a checkpoint beside it.

    Raises:
        UserError: If no file is given, it does not exist, or is not a lit_ft checkpoint.
    """
    if path is None:
        hint = suggest_checkpoint(root, configs)
        raise UserError(f"`ckpt_path`: lit-ft {command} needs the checkpoint of a run{hint}")
    refuse_missing_checkpoint(path)
    try:
        checkpoint = torch_files.load(path, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        is_exported = Path(path).suffix.lower() in EXPORTED
        hint = "; what lit-ft export writes is for lit-ft predict, test and verify" if is_exported else ""
        raise UserError(f"`ckpt_path`: {path} is not a checkpoint, or it is damaged{hint}") from error
    hparams = all_hyperparameters(checkpoint)
    if "backbone" not in hparams:
        raise UserError(f"`ckpt_path`: {path} is no lit_ft checkpoint; to start from its weights use `model.weights`")
    return hparams


def all_hyperparameters(checkpoint: Any) -> dict[str, Any]:
    """The hyperparameters in a checkpoint, also those that a subclass's constructor does not take; none in others."""
    content = checkpoint if isinstance(checkpoint, dict) else {}
    hparams = content.get("all_hyper_parameters", content.get("hyper_parameters"))
    return dict(hparams) if isinstance(hparams, dict) else {}


def saved_options(path: str) -> dict[str, Any]:
    """The options of the run that wrote a checkpoint, as of `run_options`; none where it does not tell them."""
    options = torch_files.load(path, mmap=True).get("run_options")
    return dict(options) if isinstance(options, dict) else {}


def as_config(cls: type[ConfigT], given: Any) -> ConfigT:
    """The dataclass itself, or built from the dict that a checkpoint holds."""
    return cls(**given) if isinstance(given, dict) else cast(ConfigT, given)


class PlainHyperparameters(HyperparametersMixin):
    """Plain hyperparameters, of which a checkpoint gives a subclass those that its own constructor takes.

    A module is loaded with them without running code of its checkpoint; to be mixed in before ``LightningModule``.
    """

    unverified_options: Collection[str] = ()
    """The options that name classes, and were taken from the checkpoint."""
    _given: Collection[str] = ()

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
        ``backbone={...}``, unless a subclass names it.

        Args:
            checkpoint_path: The checkpoint.
            map_location: The devices that its tensors go to.
            hparams_file: A file of arguments that take the place of those in the checkpoint.
            strict: Whether each tensor must be there.
            weights_only: False lets a checkpoint that you trust run code.
            options: Arguments that take the place of those in the checkpoint.

        Raises:
            UserError: If the checkpoint names a network that is not of lit_ft, torch, torchvision or timm.
        """
        checkpoint = read_checkpoint(checkpoint_path, weights_only is not False)
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
        self.hparams.update(settled)
        self.hparams.update(torch_files.plain(dict(self.hparams)))

    def save_hyperparameters(self, *args: Any, **options: Any) -> None:
        """Adds those of a subclass, as Lightning does; those that are settled stay."""
        settled = dict(self.hparams)
        frame = inspect.currentframe()
        super().save_hyperparameters(*args, **{"frame": frame and frame.f_back, **options})
        self.hparams.update({**torch_files.plain(dict(self.hparams)), **settled})

    @property
    def hparams_initial(self) -> Any:
        """The hyperparameters, for loggers: not as they were given, but as plain values."""
        return copy.deepcopy(self.hparams)

    def write_hyperparameters(self, checkpoint: dict[str, Any], base: type) -> None:
        """Puts into a checkpoint of a subclass of ``base`` what its constructor takes, and beside it all of them."""
        if type(self) is not base:
            hparams = checkpoint["all_hyper_parameters"] = dict(self.hparams)
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


def forget_files_elsewhere(trainer: Any) -> None:
    """Removes from checkpoint callbacks the paths of earlier checkpoints that are outside of their folders.

    Lightning removes the last best checkpoint, with all that is below it, by the path that is in the present one. Its
    own check of where that is takes ``..`` for a folder, and passes all that has a protocol, also ``local://``.
    """
    for callback in trainer.checkpoint_callbacks:
        folder = str(callback.dirpath)
        for name in ("best_model_path", "last_model_path"):
            if not _is_within(str(getattr(callback, name, "")), folder):
                setattr(callback, name, "")
        ranked = (*getattr(callback, "best_k_models", ()), getattr(callback, "kth_best_model_path", ""))
        if not all(_is_within(str(path), folder) for path in ranked):
            callback.best_k_models, callback.kth_best_model_path = {}, ""


def follow_moved_folder(checkpoint: Mapping[str, Any], trainer: Any) -> None:
    """Lets checkpoint callbacks find what is in the folder of the checkpoint that is resumed, wherever it was before.

    Lightning takes a folder that was moved or renamed for another one and forgets the best score, so that the next
    epoch replaced the best checkpoint, however much worse it was.
    """
    states = checkpoint.get("callbacks") or {}
    for callback in trainer.checkpoint_callbacks:
        state: Any = states.get(callback.state_key)
        folder = str(callback.dirpath)
        earlier = state.get("dirpath") if isinstance(state, dict) else None
        if not isinstance(earlier, str) or earlier == folder:
            continue
        if os.path.realpath(folder) != os.path.realpath(os.path.dirname(os.path.abspath(str(trainer.ckpt_path)))):
            continue
        places = {f"{earlier}/{path.name}": str(path) for path in Path(folder).glob("*.ckpt")}
        if state.get("best_model_path") not in places:
            continue  # moved in part
        state["dirpath"] = folder
        for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
            state[name] = places.get(state.get(name), "")
        ranked = state.get("best_k_models") or {}
        state["best_k_models"] = {places[path]: score for path, score in ranked.items() if path in places}


def _is_within(path: str, folder: str) -> bool:
    """Whether a path is within a folder, or a plain one, of which Lightning sees rightly whether it is."""
    if "://" in path or "::" in path:
        return path.startswith(f"{folder.rstrip('/')}/") and ".." not in path.split("/")
    return ".." not in Path(path).parts or Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
