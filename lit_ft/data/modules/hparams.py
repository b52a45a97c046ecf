"""Hyperparameters of a data module, as plain values in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from types import FrameType
from typing import Any

import lightning as L

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.weights.torch_files import is_plain, plain
from lit_ft.compat import collect_constructor_arguments


def save_plain_hyperparameters(module: L.LightningDataModule, constructor: FrameType | None) -> None:
    """Saves the arguments of a constructor, and of those of its subclasses, which checkpoints then contain.

    What is no plain value, as a subclass's own may be, is left out: the checkpoint could not be read without running
    code. Loggers get none of them, as the model has options of the same name.

    Args:
        module: The data module.
        constructor: The frame of the constructor of its base class.
    """
    if constructor is None:
        return
    levels = collect_constructor_arguments(constructor)
    given = {name: value for level in levels for name, value in level.items()}
    others = [name for name, value in given.items() if not is_plain(plain(value))]
    module.save_hyperparameters(logger=False, frame=constructor, ignore=others)
    module.hparams.update(plain(dict(module.hparams)))


def as_input_spec(given: InputSpec | Mapping[str, Any] | None) -> InputSpec | None:
    """The spec of images, also from the dict that a checkpoint has of it."""
    if not isinstance(given, Mapping):
        return given
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return InputSpec(**values)
