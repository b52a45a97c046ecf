"""Freezing of stages: gradients, eval mode and norm layers; and the selection of parameters by stage and kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

from torch import nn

from lit_ft.compat import BATCH_NORM, INSTANCE_NORM
from lit_ft.errors import UserError

FrozenNorm = Literal["eval", "stats", "train"]
TrainedNorm = Literal["train", "eval"]

Kind = Literal["all", "norms", "biases", "weights"]
"""Every parameter, those of norm layers, biases of any layer, or the weights of layers that multiply.

Weights are what weight decay is for: no norms, scales, class tokens or position embeddings.
"""

NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm, INSTANCE_NORM)

StagedT = TypeVar("StagedT", bound="Staged")


def select_parameters(
    stages: Mapping[str, Sequence[nn.Module]], kinds: Mapping[str, Kind]
) -> dict[str, list[nn.Parameter]]:
    """The parameters of a kind for each stage, shallow to deep; each parameter once.

    Everything that trains, freezes, decays or is counted by stage is selected here. Nothing is selected in stages
    without a kind.

    >>> stages = {"conv": [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)], "head": [nn.Linear(2, 2)]}
    >>> found = select_parameters(stages, {"head": "all", "conv": "norms"})
    >>> {stage: [tuple(parameter.shape) for parameter in selected] for stage, selected in found.items()}
    {'conv': [(2,), (2,)], 'head': [(2, 2), (2,)]}
    """
    return {name: _of_kind(parts, kinds[name]) for name, parts in stages.items() if name in kinds}


def norm_layers(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """The norm layers within some modules."""
    return [module for part in parts for module in part.modules() if isinstance(module, NORMS)]


def _of_kind(parts: Sequence[nn.Module], kind: Kind) -> list[nn.Parameter]:
    in_norms = {id(parameter) for norm in norm_layers(parts) for parameter in norm.parameters()}
    found: dict[int, nn.Parameter] = {}
    modules = [module for part in parts for module in part.modules()]
    for name, parameter in (named for module in modules for named in module.named_parameters(recurse=False)):
        # By name, as a scale (C, 1, 1) and a class token (1, 1, C) have as many axes as a weight.
        matches = {
            "all": True,
            "norms": id(parameter) in in_norms,
            "biases": name.endswith("bias"),
            "weights": "weight" in name and parameter.ndim > 1 and id(parameter) not in in_norms,
        }
        if matches[kind]:
            found.setdefault(id(parameter), parameter)
    return list(found.values())


def trainable_kinds(stages: Iterable[str], names: Collection[str], frozen_norm: FrozenNorm) -> dict[str, Kind]:
    """What trains in each stage, as `select_parameters` takes it, where the stages ``names`` train.

    >>> trainable_kinds(["stem", "head"], ["head"], "train")
    {'stem': 'norms', 'head': 'all'}
    """
    selected = stages if frozen_norm == "train" else (stage for stage in stages if stage in names)
    return {stage: "all" if stage in names else "norms" for stage in selected}


class Staged:
    """A module that names its stages, of which any can be frozen; to be mixed in before ``nn.Module``.

    A class needs to define `stage_modules`, and no more.

    Raises:
        UserError: Where a class names it behind ``nn.Module`` or a class of it.
    """

    _frozen: frozenset[str] = frozenset()
    _frozen_norm: FrozenNorm = "eval"
    _norm: TrainedNorm = "train"
    _ends_in_head = True  # which is new, and has no statistics to keep

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if nn.Module in order[: order.index(Staged)]:  # whose `train` would set frozen stages to training, too
            first = next(base.__name__ for base in cls.__bases__ if issubclass(base, nn.Module))
            raise UserError(f"{cls.__name__}: name Staged before {first} in its bases, or frozen stages will train")

    def stage_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each stage, shallow to deep: every parameter stands in exactly one stage."""
        raise NotImplementedError(f"{type(self).__name__} must define stage_modules()")

    def set_trainable(
        self, names: Collection[str], frozen_norm: FrozenNorm = "eval", norm: TrainedNorm = "train"
    ) -> None:
        """Lets just the stages ``names`` train; setting the same again changes nothing.

        Args:
            names: The stages that train. All others have no gradient and stay in eval mode, whoever calls `train`.
            frozen_norm: What norm layers of frozen stages do: ``eval`` nothing, ``stats`` follow the running
                statistics of the batches, ``train`` train on.
            norm: What batch norm of stages that train does: ``train`` normalises by the batch and follows it, ``eval``
                normalises by the statistics that it has. Its weights and biases train. That of the last stage, the
                new head, always follows the batches.
        """
        self.mark_frozen(names, frozen_norm, norm)
        selected = {id(parameter) for parameter in self.trainable_parameters(names, frozen_norm)}
        module = cast(nn.Module, self)
        for parameter in module.parameters():
            trains = id(parameter) in selected
            if parameter.requires_grad != trains:
                parameter.requires_grad_(trains)
            if not trains:
                parameter.grad = None  # else the optimizer would step once more with the last gradient
        module.train(module.training)

    def mark_frozen(self, names: Collection[str], frozen_norm: FrozenNorm, norm: TrainedNorm = "train") -> None:
        """Sets what `train` leaves in eval mode: all stages but ``names``. Gradients are left to `set_trainable`."""
        self._frozen = frozenset(self.stage_modules()) - frozenset(names)
        self._frozen_norm = frozen_norm
        self._norm = norm

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
        stages = self.stage_modules() if mode and (self._frozen or self._norm == "eval") else {}
        for name, parts in stages.items():
            if name in self._frozen:
                for part in parts:
                    part.eval()
                for layer in norm_layers(parts) if self._frozen_norm != "eval" else ():
                    layer.train()
            elif self._norm == "eval" and not (self._ends_in_head and name == next(reversed(stages))):
                for layer in norm_layers(parts):
                    layer.train(not isinstance(layer, BATCH_NORM))
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
