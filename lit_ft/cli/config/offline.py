"""What a config needs of the network: its published weights and data, and what of them is missing offline."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lit_ft.assets import data_root
from lit_ft.backbones.build import input_spec, source_of
from lit_ft.backbones.weights.load import is_file_name
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.errors import UserError

# What only some commands take, and the others would not know.
_OWN_OPTIONS = ("--ckpt_path", "--weights_only", "--verbose", "--return_predictions", "--folder")


def published_weights(model: Mapping[str, Any]) -> Published | None:
    """The published weights that a model asks for, if any.

    Args:
        model: ``backbone`` and ``weights``.

    Raises:
        UserError: If the backbone or the tag is unknown.
    """
    name, tag = model.get("backbone"), model.get("weights")
    if name is None or tag is None or is_file_name(tag):
        return None
    input_spec(name, tag)  # refuses what is unknown
    found = source_of(name).tags(str(name))[tag]
    return found if found.url is not None else None


def same_options(command: str, args: Sequence[str]) -> str:
    """The line that runs a command with the config of another.

    >>> same_options("download", ["--config", "a b.yaml", "--ckpt_path", "x.ckpt", "--model.lr=1"])
    "lit-ft download --config 'a b.yaml' --model.lr=1"
    """
    kept: list[str] = []
    skip = False
    for arg in args:
        name, equals, _ = arg.partition("=")
        if not skip and name not in _OWN_OPTIONS:
            kept.append(arg)
        skip = name in _OWN_OPTIONS and not equals
    return shlex.join(["lit-ft", command, *kept])


def refuse_missing(model: Mapping[str, Any], data: Any, command: str) -> None:
    """Refuses to start where something is not on this machine, and lists all of it.

    Args:
        model: ``backbone`` and ``weights``.
        data: The data module.
        command: What fetches the files where there is a network.

    Raises:
        UserError: If a file is missing.
    """
    weights = published_weights(model)
    missing = []
    if weights is not None and weights.local() is None:
        missing.append(f"{weights.places()[0].absolute()} (from {weights.url})")
    missing += [str(path.absolute()) for path in getattr(data, "missing_files", list)()]
    if missing:
        folder = shlex.quote(str(data_root()))
        raise UserError(
            f"`offline`: {len(missing)} {'file is' if len(missing) == 1 else 'files are'} missing: "
            f"{', '.join(missing)}; to fetch them where there is a network: {command} --folder {folder}"
        )


def must_fetch(model: Mapping[str, Any]) -> bool:
    """Whether the weights that a model asks for are published and not on this machine."""
    weights = published_weights(model)
    return weights is not None and weights.local() is None


def read_before_fetching(data: Any) -> None:
    """Reads the data of a run, so that what is missing or wrong there is refused before weights are fetched.

    Args:
        data: The data module. What it will fetch by itself is not read, and neither is what is of no module of lit_ft.

    Raises:
        UserError: If the data cannot be read.
    """
    fetches = getattr(data, "download", False) and data.missing_files()
    if isinstance(data, ImageDataModule) and not fetches:
        data.read()
