"""Freezing of stages: gradients, eval mode and norm layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal, TypeVar, cast

from torch import nn

from lit_ft.backbones.selector import NORMS, Kind, norm_layers, select_parameters
from lit_ft.errors import UserError

FrozenNorm = Literal["eval", "stats", "train"]

StagedT = TypeVar("StagedT", bound="Staged")


def trainable_kinds(stages: Iterable[str], names: Collection[str], frozen_norm: FrozenNorm) -> dict[str, Kind]:
    """What trains in each stage, as `select_parameters` takes it; a stage in which nothing trains is left out.

    Args:
        stages: All stages, shallow to deep.
        names: The stages that train.
        frozen_norm: What norm layers of the other stages do.

    >>> trainable_kinds(["stem", "head"], ["head"], "train")
    {'stem': 'norms', 'head': 'all'}
    """
    kinds: dict[str, Kind] = {}
    for stage in stages:
        if stage in names:
            kinds[stage] = "all"
        elif frozen_norm == "train":
            kinds[stage] = "norms"
    return kinds


class Staged:
    """A module that names its stages, of which any can be frozen; to be mixed in before ``nn.Module``.

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
        self.mark_frozen(names, frozen_norm)
        selected = {id(parameter) for parameter in self.trainable_parameters(names, frozen_norm)}
        module = cast(nn.Module, self)
        for parameter in module.parameters():
            trains = id(parameter) in selected
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None  # else the optimizer would step once more with the last gradient
        module.train(module.training)

    def mark_frozen(self, names: Collection[str], frozen_norm: FrozenNorm) -> None:
        """Sets which stages `train` leaves in eval mode: all but ``names``. Gradients are left to `set_trainable`."""
        self._frozen = frozenset(self.stage_modules()) - frozenset(names)
        self._frozen_norm = frozen_norm

    def trainable_parameters(self, names: Collection[str], frozen_norm: FrozenNorm = "eval") -> list[nn.Parameter]:
        """The parameters that `set_trainable` with the same arguments lets train, each once, shallow to deep."""
        stages = self.stage_modules()
        selected = select_parameters(stages, trainable_kinds(stages, names, frozen_norm))
        return [parameter for parameters in selected.values() for parameter in parameters]

    def fixed_prefix(self) -> tuple[str, ...]:
        """The first stages whose output for an image never changes: they are frozen, and so are their norm layers."""
        fixed = []
        for name, parts in self.stage_modules().items():
            moves = self._frozen_norm != "eval" and bool(norm_layers(parts))
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
            for norm in norm_layers(stages[name]) if self._frozen_norm != "eval" else ():
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
        modules = cast(nn.Module, self).named_modules()
        norms = (name for name, part in modules if part not in held and isinstance(part, NORMS))
        left = [*(f"parameter {names[one]}" for one in names.keys() - homes.keys()), *norms]
        if left:
            raise UserError(f"{type(self).__name__}.stage_modules: {left[0]} is in no stage; it must be in exactly one")
