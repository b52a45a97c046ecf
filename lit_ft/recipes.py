"""Recipes: the configs that come with lit_ft, found by their names, and what their headers tell."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lit_ft.errors import unknown

_PACKAGED = Path(__file__).with_name("configs")
# A wheel has them inside the package, from the folder that a checkout has beside it.
FOLDER = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[1] / "configs"
"""The folder of all recipes, with those of clusters below it."""


class Recipe(NamedTuple):
    """What the header of a recipe tells.

    Args:
        name: Its name.
        data: What it was measured on.
        time: How long it took there, on one thread of a CPU.
        score: What it came to.
    """

    name: str
    data: str
    time: str
    score: str


def recipe_names() -> list[str]:
    """The names of all recipes, of which the last are for clusters."""
    return [*_configs(), *_configs("cluster")]


def recipes() -> list[Recipe]:
    """All recipes but those for clusters, as their headers tell of them.

    >>> [(found.name, found.time) for found in recipes() if found.name == "quickstart"]
    [('quickstart', '15 to 32 s')]
    """
    return [_read_header(path) for path in _configs().values()]


def cluster_files() -> dict[str, str]:
    """What is for several GPUs or machines, by its name: a config by that of a recipe, a script by that of its file."""
    return {name: _read_purpose(path) for name, path in _cluster().items()}


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
    return _pick(name, {**_configs(), **_configs("cluster")}, key)


def read_recipe(name: str) -> str:
    """The text of a recipe, or of a script for clusters.

    Raises:
        UserError: If there is none of that name.
    """
    return _pick(name, {**_configs(), **_cluster()}).read_text(encoding="utf-8")


def find_config(given: str, key: str | None = None) -> str:
    """The path of a config that is given by a path, or by a name: of a file here, without its suffix, or recipe.

    What has a suffix or a separator is a path, whether or not it is there, and what is no name, as YAML itself, stays.

    Args:
        given: What was given.
        key: The option that it was given for, for the error.

    Raises:
        UserError: If it is a name, and there is neither a file nor a recipe of that name.

    >>> find_config("configs/mine.yaml")
    'configs/mine.yaml'
    """
    if not re.fullmatch(r"\w[\w-]*", given) or os.path.isfile(given):
        return given
    own = next((path for suffix in (".yaml", ".yml") if os.path.isfile(path := f"{given}{suffix}")), None)
    return str(own or find_recipe(given, key))


def _pick(name: str, files: dict[str, Path], key: str | None = None) -> Path:
    if name not in files:
        raise unknown("recipe", name, files, key)
    return files[name]


def _configs(folder: str = ".") -> dict[str, Path]:
    return {path.stem: path for path in sorted((FOLDER / folder).glob("*.yaml"))}


def _cluster() -> dict[str, Path]:
    scripts = sorted(path for path in (FOLDER / "cluster").iterdir() if path.suffix in (".sh", ".sbatch"))
    return {**_configs("cluster"), **{path.name: path for path in scripts}}


def _read_header(path: Path) -> Recipe:
    told = dict(re.findall(r"^# (Data|Time|Score): +(.+)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    return Recipe(path.stem, told["Data"], told["Time"], told["Score"])


def _read_purpose(path: Path) -> str:
    """The first sentence of a header."""
    text = path.read_text(encoding="utf-8")
    return next(line[2:].split(". ")[0].rstrip(".") for line in text.splitlines() if line.startswith("# "))
