"""Options of a trainer that are refused before it is made."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.accelerators import AcceleratorRegistry, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.strategies import StrategyRegistry

from lit_ft.errors import UserError, unknown
from lit_ft.model.sharding import refuse_unsupported

_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}


def refuse_unknown_names(given: Mapping[str, Any]) -> None:
    """Raises `UserError` if the options of a trainer have a strategy or an accelerator that does not exist."""
    registries: dict[str, Iterable[str]] = {
        "strategy": StrategyRegistry.available_strategies(),
        "accelerator": ("gpu", *sorted(AcceleratorRegistry.available_accelerators())),
    }
    for option, registered in registries.items():
        name, names = given.get(option), ["auto", *registered]
        if isinstance(name, str) and name not in names:
            raise unknown(option, name, names, f"`trainer.{option}`")
    refuse_unsupported(given.get("strategy"))


def refuse_options(given: Mapping[str, Any]) -> None:
    """Refuses options that Lightning accepts and fails on later, or refuses without an explanation."""
    names = inspect.signature(L.Trainer).parameters
    if others := [option for option in given if option not in names]:
        raise unknown("argument", others[0], names, "lit_ft.Trainer")
    for option, least in _LEAST.items():
        if (value := given.get(option)) is not None and value < least:
            raise UserError(f"`trainer.{option}`: must be at least {least}, got {value}")
    for option in ("limit_train_batches", "devices"):
        if given.get(option) in (0, "0"):
            raise UserError(f"`trainer.{option}`: 0 leaves nothing to train; give more, or leave it out")
    refuse_unknown_names(given)
    if given.get("accelerator") in ("gpu", "cuda") and not (
        CUDAAccelerator.is_available() or MPSAccelerator.is_available()
    ):
        raise UserError("`trainer.accelerator`: torch finds no GPU here; give cpu or auto")
