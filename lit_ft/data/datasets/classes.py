"""Classes of data sets by name, and the arguments that they take."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lit_ft.errors import UserError, unknown
from lit_ft.own_code import running_own_code

KEY = "`data.dataset`"

_HOME = "torchvision.datasets"
_OURS = {
    "root": "`data.root`",
    "download": "`data.download`",
    **dict.fromkeys(("transform", "transforms", "target_transform"), "`data.augment`"),
}
"""Arguments that lit_ft gives or leaves out, and the option that does the same."""


@dataclass(frozen=True)
class DatasetClass:
    """A class of data sets.

    Args:
        path: Its dotted path.
        made_by: The class.
    """

    path: str
    made_by: Any

    @classmethod
    def find(cls, given: str) -> DatasetClass:
        """The class of a name, of torchvision's or a dotted path; its module is imported.

        Raises:
            UserError: There is no such class, or it is no data set.
        """
        if is_of_torchvision(given):
            given = given.rpartition(".")[2]
            return cls(f"{_HOME}.{given}", getattr(importlib.import_module(_HOME), given))
        home, _, title = given.rpartition(".")
        if home in ("", _HOME):
            raise unknown("data set of torchvision", title, list_torchvision(), KEY)
        try:
            with running_own_code(KEY, given, f"at the import of {home}"):
                module = importlib.import_module(home)
                found = getattr(module, title, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{home}.".startswith(f"{error.name}."):
                raise  # of what is imported there
            raise UserError(f"{KEY}: {given}: there is no module {error.name}; give the path of a class") from error
        if found is None:
            classes = [name for name, one in vars(module).items() if isinstance(one, type) and one.__module__ == home]
            raise unknown(f"class of {home}", title, classes, KEY)
        if not isinstance(found, type) or not (hasattr(found, "__getitem__") and hasattr(found, "__len__")):
            raise UserError(
                f"{KEY}: {given} is no data set, which is a class with __getitem__ and __len__; of other data, make a "
                "LightningDataModule, and name it with `data`"
            )
        return cls(given, found)

    @property
    def name(self) -> str:
        """Its name."""
        return self.path.rpartition(".")[2]

    @property
    def is_own(self) -> bool:
        """Whether it is anybody's own, not of torchvision."""
        return not is_of_torchvision(self.path)

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The parameters of its constructor."""
        return constructor_parameters(self.made_by)

    @property
    def takes_anything(self) -> bool:
        """Whether it takes arguments by any name."""
        return any(one.kind is one.VAR_KEYWORD for one in self.parameters.values())

    def arguments(self, root: str | None, default_root: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """What each split is made with: the folder, no download, and what the user gives.

        Args:
            root: The folder that the user gives.
            default_root: The folder where none is given; for a class that can do without, none.
            given: Further arguments.

        Raises:
            UserError: An argument is not known or is missing, or an option says the same.
        """
        for name in given:
            if name in _OURS:
                raise UserError(f"`data.dataset_args`: {name} is not for the class; give {_OURS[name]}")
            if name not in self.parameters and not self.takes_anything:
                known = [one for one in self.parameters if one not in _OURS]
                raise unknown(f"argument of {self.name}", name, known, "`data.dataset_args`")
        own = dict(given)
        folder = self.parameters.get("root")
        if folder is not None and (root is not None or folder.default in (folder.empty, None)):
            own["root"] = default_root if root is None else root
        if "download" in self.parameters:  # which some do by default
            own["download"] = False
        chooser = self.chooser(own)
        needed = [
            name
            for name, one in inspect.signature(self.made_by).parameters.items()
            if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        if missing := [name for name in needed if name not in (*own, chooser, "loader")]:
            raise UserError(
                f"`data.dataset_args`: {self.name} needs {' and '.join(missing)}; give `data.dataset_args` "
                f"'{{{missing[0]}: VALUE}}'"
            )
        return own

    def chooser(self, arguments: Mapping[str, Any]) -> str | None:
        """The parameter that chooses the split, unless the user gives it."""
        train, split = self.parameters.get("train"), self.parameters.get("split")
        if train is not None and (isinstance(train.default, bool) or train.annotation in (bool, "bool", train.empty)):
            return None if "train" in arguments else "train"
        return "split" if split is not None and "split" not in arguments else None


def refuse_foreign_dataset(saved: str | None, named: str | None) -> None:
    """Refuses a checkpoint's data set of somebody's own, unless the user names its class, too.

    Raises:
        UserError: The class is not of torchvision, and not the one that the user names.
    """
    if saved is not None and saved != named and not is_of_torchvision(saved):
        raise UserError(
            f"`ckpt_path`: the checkpoint names the data set {saved}, whose code would run; if you trust it, name it, "
            f"too: `data.dataset` {saved}, or the config of its run"
        )


def constructor_parameters(made_by: type) -> dict[str, inspect.Parameter]:
    """The parameters of the constructor of a class, with those that it hands on to the constructors of its parents."""
    found: dict[str, inspect.Parameter] = {}
    rest: list[inspect.Parameter] = []
    for home in inspect.getmro(made_by)[:-1]:  # all but object
        if "__init__" not in vars(home):
            continue
        own = list(inspect.signature(home.__init__).parameters.values())[1:]  # type: ignore[misc]
        rest = [one for one in own if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        found |= {one.name: one for one in own if one not in rest and one.name not in found}
        if not any(one.kind is one.VAR_KEYWORD for one in rest):
            return found
    return found | {one.name: one for one in rest}


def is_of_torchvision(path: str) -> bool:
    """Whether a name or dotted path is of a class of torchvision's data sets.

    >>> is_of_torchvision("FashionMNIST"), is_of_torchvision("torchvision.datasets.SVHN"), is_of_torchvision("my.SVHN")
    (True, True, False)
    """
    return path.removeprefix(f"{_HOME}.") in list_torchvision()


def list_torchvision() -> list[str]:
    """The names of torchvision's data sets."""
    module = importlib.import_module(_HOME)
    return sorted(name for name in module.__all__ if isinstance(getattr(module, name), type))
