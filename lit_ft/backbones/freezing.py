"""Decides what a frozen stage is: no gradients, eval mode whoever calls `train`, and norm layers as asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_ft.errors import UserError

FrozenNorm = Literal["eval", "stats", "train"]

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)

StagedT = TypeVar("StagedT", bound="Staged")


class Staged:
    """A module that names its stages, and of which any can be frozen; to be mixed in before ``nn.Module``.

    A class needs to define `stage_modules`, and no more.
    """

    _frozen: frozenset[str] = frozenset()
    _frozen_norm: FrozenNorm = "eval"

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep: every parameter stands in exactly one stage."""
        raise NotImplementedError(f"{type(self).__name__} must define stage_modules()")

    def set_trainable(self, names: Collection[str], frozen_norm: FrozenNorm = "eval") -> None:
        """Lets just the stages ``names`` train; setting the same again changes nothing.

        Args:
            names: The stages that train. All others have no gradient and stay in eval mode, whoever calls `train`.
            frozen_norm: What norm layers of frozen stages do: ``eval`` nothing, ``stats`` follow the running
                statistics of the batches, ``train`` train on.
        """
        self._frozen = frozenset(self.stage_modules()) - frozenset(names)
        self._frozen_norm = frozen_norm
        trained = self.trained(names, frozen_norm)
        module = cast(nn.Module, self)
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) in trained)
            if not parameter.requires_grad:
                parameter.grad = None  # else the optimizer would step once more with the last gradient
        module.train(module.training)

    def trained(self, names: Collection[str], frozen_norm: FrozenNorm = "eval") -> set[int]:
        """The ids of the parameters that `set_trainable` with the same arguments lets train."""
        found: set[int] = set()
        for name, parts in self.stage_modules().items():
            whole = parts if name in names else [norm for part in parts for norm in _norms(part)]
            if name in names or frozen_norm == "train":
                found |= {id(parameter) for part in whole for parameter in part.parameters()}
        return found

    def fixed_prefix(self) -> tuple[str, ...]:
        """The first stages, as many as give always the same for an image: they are frozen, and so are their norms."""
        fixed = []
        for name, parts in self.stage_modules().items():
            moves = self._frozen_norm != "eval" and any(True for part in parts for _ in _norms(part))
            trains = any(parameter.requires_grad for part in parts for parameter in part.parameters())
            if name not in self._frozen or moves or trains:  # who froze it may not be the last to decide
                break
            fixed.append(name)
        return tuple(fixed)

    def train(self: StagedT, mode: bool = True) -> StagedT:
        """Sets training mode for all but the frozen stages, whose dropout and batch norm must not act."""
        super().train(mode)  # type: ignore[misc]  # nn.Module's, which stands behind this one
        stages = self.stage_modules() if mode and self._frozen else {}
        for name in self._frozen & stages.keys():
            for part in stages[name]:
                part.eval()
                for norm in _norms(part) if self._frozen_norm != "eval" else ():
                    norm.train()
        return self

    def check_stages(self) -> None:
        """Refuses stages that do not hold every parameter exactly once.

        Raises:
            UserError: If a parameter is in no stage, or in two, or a norm layer in none.
        """
        homes: dict[int, str] = {}
        names = {id(parameter): name for name, parameter in cast(nn.Module, self).named_parameters()}
        for stage, parts in self.stage_modules().items():
            own = {id(parameter) for part in parts for parameter in part.parameters()}
            for parameter in own & homes.keys():
                raise UserError(
                    f"{type(self).__name__}.stage_modules: parameter {names.get(parameter)} is in {homes[parameter]} "
                    f"and in {stage}; it must be in exactly one"
                )
            homes |= dict.fromkeys(own, stage)
        held = {part for parts in self.stage_modules().values() for whole in parts for part in whole.modules()}
        norms = (name for name, part in cast(nn.Module, self).named_modules() if part not in held and _is_norm(part))
        left = [*(f"parameter {names[one]}" for one in names.keys() - homes.keys()), *(f"{name}" for name in norms)]
        if left:
            raise UserError(f"{type(self).__name__}.stage_modules: {left[0]} is in no stage; it must be in exactly one")


def _norms(part: nn.Module) -> Iterator[nn.Module]:
    return (module for module in part.modules() if _is_norm(module))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS)
