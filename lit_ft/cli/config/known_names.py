"""The names that a parser knows: of its options, of those of a class, and of the classes that it can make."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from lit_ft import data
from lit_ft.data.datasets.classes import constructor_parameters

DATA_MODULES = [getattr(data, name) for name in data.__all__]
"""All data modules of lit_ft: a parser knows a class by its name once it is loaded, and lists them in that order."""

PHOTO_MODULES = (
    data.ImageFolderDataModule,
    data.ImageTableDataModule,
    data.ImageArrayDataModule,
    data.ImageDatasetDataModule,
)
"""The data modules of anybody's images, by whose options those of unknown data are known."""


def option_names(defaults: Any) -> set[str]:
    """The names of all options of a parser with a namespace of defaults, as they are typed.

    >>> from jsonargparse import Namespace
    >>> sorted(option_names(Namespace(model=Namespace(class_path="x", init_args=Namespace(lr=1)))))
    ['model', 'model.lr']
    """
    names = [key.replace(".init_args", "").removesuffix(".class_path").split(".") for key in dict(defaults.items())]
    return {".".join(parts[:end]) for parts in names for end in range(1, len(parts) + 1)}


def class_options(cls: Any) -> list[str]:
    """The options of a class, with those that it hands on to its parents and those of the dataclasses among them."""
    options = []
    for parameter in constructor_parameters(cls).values():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            options.append(parameter.name)
        if dataclasses.is_dataclass(parameter.default):
            options += [f"{parameter.name}.{field.name}" for field in dataclasses.fields(parameter.default)]
    return options


def find_photo_module(option: str) -> str | None:
    """The name of the first data module of anybody's images that has an option.

    >>> find_photo_module("table"), find_photo_module("root"), find_photo_module("dataset"), find_photo_module("lr")
    ('ImageTableDataModule', 'ImageFolderDataModule', 'ImageDatasetDataModule', None)
    """
    return next((cls.__name__ for cls in PHOTO_MODULES if option in class_options(cls)), None)


def class_names(base: type) -> list[str]:
    """The names of all classes below ``base`` that are known by now and can be made."""
    names: list[str] = []
    children: list[type] = base.__subclasses__()
    for child in children:
        names += [*([] if inspect.isabstract(child) else [child.__name__]), *class_names(child)]
    return names
