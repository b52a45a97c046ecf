"""The options of a search, and its space: what is tried of each option."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, cast, get_args

from lit_ft.errors import UserError

DimensionKind = Literal["float", "log", "int", "choice"]

_MOST = 10_000
"""Combinations from which a space is taken for one without end."""

_EXAMPLE = "{model.lr: {log: [1.0e-5, 1.0e-2]}}"

_SAME_IMAGES = (
    "data.root", "data.table", "data.dataset", "data.train", "data.val", "data.val_fraction", "data.test_fraction",
    "data.split_seed", "data.folds", "folds", "data.fold", "data.split_column", "data.groups", "data.group_column",
    "trainer.limit_val_batches",
)  # fmt: skip

_NOT_TRIED: dict[str, str] = {
    **dict.fromkeys(_SAME_IMAGES, "trials are compared on the same validation images"),
    **dict.fromkeys(("name", "trainer.default_root_dir"), "all trials are in the folder of the study"),
    **dict.fromkeys(("trainer.devices", "trainer.num_nodes"), "each trial has one device"),
    **dict.fromkeys(("seed_everything", "seed"), "trials with the best seed are the luckiest"),
    "checkpoint": "trials are compared by what it monitors",
    "refit": "trials are compared before it",
    "tune": "it is the search itself",
}
"""Options that a space cannot have, with those below them, and why."""


@dataclass(frozen=True)
class TuneConfig:
    """A search for the options with which a run has the best validation metric.

    Args:
        trials: Number of trials, of all processes that share the study together.
        space: What is tried of each option, such as {model.lr: {log: [1.0e-5, 1.0e-2]}}: float, log and int have the
            least and the greatest number, choice has all values.
        pruner: Ends a trial whose metric is worse than the median of the others at the same epoch, or by Hyperband;
            null ends none.
        least_epochs: Epochs that each trial has.
        storage: URL of a database that keeps the study, such as sqlite:///study.db; null keeps it in a file of its
            folder, which processes and machines can share, too.

    Raises:
        UserError: If a number is out of range, or the storage is no URL.
    """

    trials: int = 20
    space: dict[str, Any] = field(default_factory=dict)
    pruner: Literal["median", "hyperband"] | None = "median"
    least_epochs: int = 1
    storage: str | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "least_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"`tune.{name}`: must be at least 1, got {getattr(self, name)}")
        if self.storage is not None:
            _check_url(self.storage)


def _check_url(storage: str) -> None:
    """Raises `UserError` for what is no URL, or none that is read as it is meant; without a password in it."""
    scheme, mark, rest = storage.partition("://")
    if not mark:
        given = f"{storage} is" if "@" not in storage else "this is"
        raise UserError(f"`tune.storage`: {given} no URL; give one such as sqlite:///study.db, or null")
    # Of a password with a @ of its own, what follows would be taken for the server, and be shown where that is missing.
    if not rest.startswith("/") and rest.partition("?")[0].count("@") > 1:
        raise UserError(f"`tune.storage`: the URL of {scheme} has more than one @; write %40 for those of a password")


@dataclass(frozen=True)
class Dimension:
    """What is tried of an option.

    Args:
        kind: ``float`` and ``int``, a number between two; ``log``, one whose logarithm is; ``choice``, one of some.
        values: The least and the greatest, or all.
    """

    kind: DimensionKind
    values: tuple[Any, ...]

    @property
    def keys(self) -> tuple[Any, ...]:
        """The values of a choice as a study keeps them: numbers, words, true, false and null, all else as JSON.

        Of values that Python, and so Optuna, takes for the same, as 1, 1.0 and true, all are JSON.
        """
        keys = tuple(map(_key, self.values))
        return keys if len(set(keys)) == len(keys) else tuple(map(json.dumps, self.values))

    def value_of(self, drawn: Any) -> Any:
        """The value of the option, of what a study has drawn."""
        if self.kind != "choice":
            return drawn
        return next(one for one, key in zip(self.values, self.keys, strict=True) if _mark(key) == _mark(drawn))


def list_combinations(space: Mapping[str, Dimension]) -> list[dict[str, Any]] | None:
    """All that can be drawn, as a study keeps it; None where that is without end, or more than any search tries.

    >>> list_combinations({"a": Dimension("int", (1, 2)), "b": Dimension("choice", ("x", None))})
    [{'a': 1, 'b': 'x'}, {'a': 1, 'b': None}, {'a': 2, 'b': 'x'}, {'a': 2, 'b': None}]
    """
    values: list[Sequence[Any]] = []
    for one in space.values():
        if one.kind not in ("choice", "int"):
            return None
        values.append(one.keys if one.kind == "choice" else range(one.values[0], one.values[1] + 1))
    if math.prod(map(len, values)) > _MOST:
        return None
    return [dict(zip(space, drawn, strict=True)) for drawn in product(*values)]


def read_space(given: Mapping[str, Any]) -> dict[str, Dimension]:
    """The dimensions of a space by the full names of their options.

    Raises:
        UserError: If there is none, or one cannot be tried as it is given.

    >>> read_space({"model.lr": {"log": [1e-5, 1e-2]}})
    {'model.lr': Dimension(kind='log', values=(1e-05, 0.01))}
    """
    if not given:
        raise UserError(f"`tune.space`: is empty; give what is tried of each option, such as {_EXAMPLE}")
    return {name: _read_dimension(name, one) for name, one in given.items()}


def _read_dimension(name: str, given: Any) -> Dimension:
    reason = next((why for one, why in _NOT_TRIED.items() if name == one or name.startswith(f"{one}.")), None)
    if reason is not None:
        raise _refuse(name, f"cannot be tried, as {reason}")
    kinds = get_args(DimensionKind)
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in kinds:
        raise _refuse(name, f"takes one of {', '.join(kinds)}, as {_EXAMPLE}; got {json.dumps(given, default=str)}")
    ((kind, values),) = given.items()
    if not isinstance(values, list):
        raise _refuse(name, f"{kind} takes a list, got {json.dumps(values, default=str)}")
    (_check_choice if kind == "choice" else _check_range)(name, kind, values)
    return Dimension(cast(DimensionKind, kind), tuple(values))


def _check_choice(name: str, kind: str, values: list[Any]) -> None:
    marks = [_mark(_key(value)) for value in values]
    if len(marks) < 2:
        raise _refuse(name, f"{kind} takes at least two values, got {json.dumps(values, default=str)}")
    for value, mark in zip(values, marks, strict=True):
        if marks.count(mark) > 1:
            raise _refuse(name, f"{kind} has {json.dumps(value)} twice; leave one out")


def _check_range(name: str, kind: str, values: list[Any]) -> None:
    wanted: tuple[type, ...] = (int,) if kind == "int" else (int, float)
    words = "whole numbers" if kind == "int" else "numbers"
    if len(values) != 2 or any(isinstance(value, bool) or not isinstance(value, wanted) for value in values):
        raise _refuse(name, f"{kind} takes the least and the greatest of two {words}, got {json.dumps(values)}")
    low, high = values
    if not low < high:
        raise _refuse(name, f"{kind} takes a smaller number before a greater one, got {json.dumps(values)}")
    if kind == "log" and low <= 0:
        raise _refuse(name, f"log takes numbers above 0, got {json.dumps(values)}; give float for those")


def _refuse(name: str, reason: str) -> UserError:
    return UserError(f"`tune.space`: {name} {reason}")


def _key(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _mark(key: Any) -> tuple[type, Any]:
    """A key with its type, as Python takes 1, 1.0 and true for the same."""
    return type(key), key
