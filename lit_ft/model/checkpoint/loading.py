"""Loading of modules from checkpoints, without running what these hold."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem

from lit_ft.backbones.weights import torch_files
from lit_ft.backbones.weights.trust import refuse_foreign
from lit_ft.compat import NO_INSTANTIATOR

ModuleT = TypeVar("ModuleT", bound="SafeLoading")


class SafeLoading:
    """A module that is loaded without running code of its checkpoint; to be mixed in before ``LightningModule``."""

    unverified_options: Collection[str] = ()
    """The options that name classes, and were taken from the checkpoint."""

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

        The checkpoint runs no code of its own: it opens no file of weights, and a network, an optimizer or a schedule
        of your own must be named here, too, as in ``backbone={...}``, unless a subclass names it.

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
        options |= NO_INSTANTIATOR
        if weights_only is not None:  # older releases of Lightning do not know it
            options["weights_only"] = weights_only
        load: Any = super().load_from_checkpoint  # type: ignore[misc]  # that of the module it is mixed into
        module: ModuleT = load(checkpoint_path, map_location, hparams_file, strict, **options)
        module.unverified_options = [
            key for key in ("optimizer", "lr_scheduler") if key in saved and key not in options
        ]
        return module


def saved_arguments(checkpoint: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The arguments that Lightning makes a module of a checkpoint with.

    Args:
        checkpoint: Its content.
        parameters: Those of the module's class.
    """
    saved: dict[str, Any] = {}
    for key in ("hparams", "module_arguments", "hyper_parameters"):  # the first two are those of Lightning before 0.8
        saved |= checkpoint.get(key) or {}
    names = {key for key, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    whole = checkpoint.get("hparams_name")  # of the one argument that takes them all
    if whole in names:
        saved = {whole: saved}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {key: value for key, value in saved.items() if takes_any or key in names}


def read_checkpoint(file: str | Path | IO[bytes], weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint, read without running what it holds.

    Args:
        file: Its path, also a remote one, or an open file, which is left where it stands.
        weights_only: False where the user trusts it with running code.
    """
    if isinstance(file, (str, Path)):
        if Path(file).is_file():
            return cast(dict[str, Any], torch_files.load(file, mmap=weights_only, weights_only=weights_only))
        with get_filesystem(file).open(str(file), "rb") as remote:
            return cast(dict[str, Any], torch.load(remote, map_location="cpu", weights_only=weights_only))
    start = file.tell()
    checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=weights_only)
    file.seek(start)
    return checkpoint
