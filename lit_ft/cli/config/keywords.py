"""Options from Python: their short and full names, sections of a config, and what is called otherwise elsewhere."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lit_ft.cli.config.advice import SHORT_NAMES, find_answer, name_as_typed
from lit_ft.errors import UserError, plain


def settle_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their full names, where the short ones are given.

    Raises:
        UserError: If one is of another tool; the message has the arguments to give instead.

    >>> settle_keywords({"epochs": 3, "model": {"lr": 0.1}})
    {'trainer.max_epochs': 3, 'model': {'lr': 0.1}}
    """
    for name, value in options.items():
        instead = None if name in SHORT_NAMES else find_answer(str(name), json.dumps(value, default=str).strip('"'))
        if instead:
            raise UserError(f"{name}: there is no such argument; {_as_arguments(instead)}")
    return {SHORT_NAMES.get(name, name): value for name, value in options.items()}


@contextmanager
def name_as_given(options: Mapping[str, Any]) -> Iterator[None]:
    """Lets a user error name options as they were given, by their short names."""
    try:
        yield
    except UserError as error:
        error.args = (name_as_typed(error.args[0], options), *error.args[1:])
        raise


def nest(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their full names as the sections of a config; the last of two that say the same counts.

    >>> nest({"trainer": {"max_epochs": 3}, "trainer.devices": 1})
    {'trainer': {'max_epochs': 3, 'devices': 1}}
    """
    nested: dict[str, Any] = {}
    for name, value in options.items():
        if not isinstance(name, str) or name.startswith("-"):
            raise UserError(f"{name}: from Python, an option is text without dashes, such as trainer.max_epochs")
        *sections, last = name.split(".")
        place = nested
        for depth, section in enumerate(sections, 1):
            given = place.get(section) or {}
            if not isinstance(given, (str, Mapping)):
                raise UserError(
                    f"`{'.'.join(sections[:depth])}`: {given} does not fit; give its options, as `{name}` {value}"
                )
            given = place[section] = {"class_path": given} if isinstance(given, str) else dict(given)
            if "class_path" in given:
                given["init_args"] = dict(given.get("init_args") or {})
            place = given.get("init_args", given)
        both = isinstance(value, Mapping) and isinstance(place.get(last), Mapping)
        place[last] = {**place[last], **value} if both else value
    return nested


def _as_arguments(instead: str) -> str:
    """An answer with what to give as arguments of Python.

    >>> _as_arguments("`trainer.accelerator` gpu `trainer.devices` 2")
    "give trainer={'accelerator': 'gpu', 'devices': 2}"
    """
    text = re.sub("follows the command: .*", "is the first argument of lit_ft.finetune", instead)
    found = re.match(r"((?:`[^`]+` (?:'[^']*'|\S+) ?)+)(.*)", text)
    if found is None:
        return plain(text)
    words = shlex.split(found[1].replace("`", "").replace(", ", " "))
    pairs = [(words[i].lstrip("-"), _read_value(words[i + 1].rstrip(","))) for i in range(0, len(words) - 1, 2)]
    options = dict[str, Any]()
    for name, value in pairs:
        if name.endswith("+"):
            options[name.rstrip("+")] = [{"class_path": value}]
        elif name.startswith("trainer.callbacks."):
            options["trainer.callbacks"][-1]["init_args"] = {name.rpartition(".")[2]: value}
        else:
            options["recipe" if name == "config" else name] = value
    arguments = ", ".join(f"{name}={value!r}" for name, value in nest(options).items())
    remark = f"{'' if found[2].startswith('(') else ','} {plain(found[2])}" if found[2] else ""
    return f"give {arguments}{remark}"


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
