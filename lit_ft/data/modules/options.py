"""Checks of options that data modules have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from lit_ft.data.loading.protocols import Augment
from lit_ft.errors import UserError, unknown

Sampling = Literal["shuffle", "balanced"]


def check_options(
    batch_size: int, augment: str, shots: int | None, fraction: float | None, sampling: str, split_seed: int
) -> None:
    """Raises `UserError` for an option of `lit_ft.data.modules.base.ImageDataModule` that is out of range."""
    if batch_size < 1:
        raise UserError(f"`data.batch_size`: {batch_size} is less than 1")
    check_choice("augment", augment, get_args(Augment))
    check_choice("sampling", sampling, get_args(Sampling))
    if shots is not None and shots < 1:
        raise UserError(f"`data.shots`: {shots} is less than 1")
    if fraction is not None:
        check_fraction("fraction", fraction)
    if shots is not None and fraction is not None:
        raise UserError(f"`data.fraction`: {fraction} and `data.shots` {shots} cannot both be; set one to null")
    if not 0 <= split_seed < 2**32:
        raise UserError(f"`data.split_seed`: {split_seed} is not between 0 and 2**32 - 1")


def check_choice(key: str, given: str | None, choices: Sequence[str]) -> None:
    """Raises `UserError` for a name that is not among the choices of the option ``data.<key>``; None leaves it open."""
    if given is not None and given not in choices:
        raise unknown(key, str(given), choices, key=f"`data.{key}`")


def check_fraction(key: str, given: float, zero: bool = False) -> None:
    """Raises `UserError` for a fraction outside (0, 1), or [0, 1) where zero is allowed."""
    if not (0 < given < 1 or (zero and given == 0)):
        allowed = "at least 0 and below 1" if zero else "between 0 and 1"
        raise UserError(f"`data.{key}`: {given} is not a fraction {allowed}")
