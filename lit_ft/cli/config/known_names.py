"""The names that a parser knows: of its options, of those of a class, and of the classes that it can make."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from lit_ft import data
from lit_ft.data.datasets.classes import constructor_parameters
from lit_ft.data.modules.arrays import ArrayDataModule

DATA_MODULES = [getattr(data, name) for name in data.__all__]
"""All data modules of lit_ft: a parser knows a class by its name once it is loaded, and lists them in that order."""

PHOTO_MODULES = (
    data.ImageFolderDataModule,
    data.ImageTableDataModule,
    data.ImageArrayDataModule,
    data.ImageDatasetDataModule,
)
"""The data modules of anybody's images, by whose options those of unknown data are known."""

_OF_FILES = ("num_workers", "cache", "fit", "on_bad_image", "bands")
"""Options for images in files."""


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


def describe_other_module(class_path: str, option: str) -> str | None:
    """What to do about an option of other data than those of a class; None if there is no such option at all.

    >>> describe_other_module("lit_ft.data.ImageArrayDataModule", "num_workers")
    'ImageArrayDataModule has its images in memory, and no such option; leave it out'
    """
    name, other = class_path.rpartition(".")[2], find_photo_module(option)
    if other is None:
        return None
    cls = getattr(data, name) if name in data.__all__ else object
    if option in _OF_FILES and issubclass(cls, ArrayDataModule):
        # As the default, the digits may stand for images that were forgotten.
        others = "" if cls is data.ImageArrayDataModule else f", or name other data, as `--data` {other}"
        return f"{name} has its images in memory, and no such option; leave it out{others}"
    return f"{name} has no such option; name one that has, as `--data` {other}"


def class_names(base: type) -> list[str]:
    """The names of all classes below ``base`` that are known by now and can be made."""
    names: list[str] = []
    children: list[type] = base.__subclasses__()
    for child in children:
        names += [*([] if inspect.isabstract(child) else [child.__name__]), *class_names(child)]
    return names
