"""Recipes: the configs that come with lit_ft, found by their names."""

from __future__ import annotations

import re
from pathlib import Path

from lit_ft.errors import unknown

_PACKAGED = Path(__file__).with_name("configs")
# A wheel has them inside the package, from the folder that a checkout has beside it.
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "configs"
"""The folder of all recipes, with those of clusters below it."""


def recipe_names() -> list[str]:
    """The names of all recipes, of which the last are for clusters."""
    return list(_configs())


def find_recipe(name: str, key: str | None = None) -> Path:
    """The file of a recipe.

    Args:
        name: Its name, without a folder or suffix.
        key: The option that it was given for, for the error.

    Raises:
        UserError: If there is none of that name; the message has those like it.

    >>> find_recipe("quickstart").name
    'quickstart.yaml'
    """
    found = _configs()
    if name not in found:
        raise unknown("recipe", name, found, key)
    return found[name]


def find_config(given: str, key: str | None = None) -> str:
    """The path of a config that is given by a path, or by a name: of a file here, with or without ``.yaml``, or recipe.

    What has a suffix or a separator is a path, whether or not it is there, and what is no name, as YAML itself, stays.

    Args:
        given: What was given.
        key: The option that it was given for, for the error.

    Raises:
        UserError: If it is a name, and there is neither a file nor a recipe of that name.

    >>> find_config("configs/mine.yaml")
    'configs/mine.yaml'
    """
    if not re.fullmatch(r"\w[\w-]*", given) or Path(given).is_file():
        return given
    own = Path(f"{given}.yaml")
    return str(own if own.is_file() else find_recipe(given, key))


def _configs() -> dict[str, Path]:
    return {path.stem: path for folder in (FOLDER, FOLDER / "cluster") for path in sorted(folder.glob("*.yaml"))}
