"""The arguments of a command as its parser takes them: short names, a folder of photos, options in any order."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from shlex import quote

from lit_ft.cli.commands import PLACES
from lit_ft.cli.config.advice import PHOTO_COMMANDS, SHORT_NAMES, Typed, describe_unknown, find_accepted
from lit_ft.cli.config.checkpoint import gives_data
from lit_ft.cli.config.words import NUMBER, describe_word, describe_words, find_place, is_there
from lit_ft.data.arrays.files import holds_arrays
from lit_ft.errors import UserError
from lit_ft.recipes import find_recipe
from lit_ft.runs import Run

PHOTO_RECIPE = "image_folder"
"""The recipe for a folder of photos that is given without a config."""

OF_ARRAYS = {"--data": "ImageArrayDataModule", "--data.augment": "basic"}
"""What differs from that recipe for arrays: that of photos would move small images out of sight."""

_FLAGS = ("--overwrite", "--help", "-h", "--print_config")
"""Options without a value."""

# Their options are of a class that must be known before them, and is none by default.
_CLASSES = ("--data", "--optimizer", "--lr_scheduler")


@dataclass(frozen=True)
class Argument:
    """An option with its value, or a word that belongs to none.

    Args:
        name: The option with its dashes; empty for a word.
        value: Its value, or the word; ``None`` where an option has none.
        parts: What was typed.
    """

    name: str
    value: str | None
    parts: tuple[str, ...]


def settle_arguments(command: str, args: Sequence[str]) -> list[str]:
    """The options of a command with their long names, configs first, and a folder of photos, or arrays, as an option.

    Raises:
        UserError: If an argument cannot be meant as it is.

    >>> settle_arguments("fit", ["--epochs", "5", "--config=a.yaml"])
    ['--config=a.yaml', '--trainer.max_epochs', '5']
    """
    if command == "finetune" and not args:
        raise UserError(
            "which photos? Type lit-ft finetune PHOTOS, or to try it without any, lit-ft finetune --config quickstart"
        )
    given = [_lengthen(one) for one in split_arguments(args)]
    if command == "predict":
        _refuse_named_run(given)
    _refuse_assignments(given, command)
    _refuse_values(given, command)
    given = _take_config_of_run(given)
    if command in PHOTO_COMMANDS:
        given = _take_photos(given, command)
    return [part for one in sorted(given, key=_rank) for part in one.parts]


def split_arguments(args: Sequence[str]) -> list[Argument]:
    """The options with their values, and the words between them.

    >>> [(one.name, one.value) for one in split_arguments(["-ca.yaml", "PHOTOS", "--model.lr", "-1", "--help"])]
    [('--config', 'a.yaml'), ('', 'PHOTOS'), ('--model.lr', '-1'), ('--help', None)]
    """
    found, place = list[Argument](), 0
    while place < len(args):
        arg, following = args[place], args[place + 1 : place + 2]
        name, equals, value = arg.partition("=")
        if short := re.fullmatch("-c=?(.+)", arg, re.DOTALL):
            found.append(Argument("--config", short[1], (arg,)))
        elif not is_option(arg):
            found.append(Argument("", arg, (arg,)))
        elif equals:
            found.append(Argument(name, value, (arg,)))
        elif arg in _FLAGS or not following or is_option(following[0]):
            found.append(Argument(arg, None, (arg,)))
        else:
            found.append(Argument("--config" if arg == "-c" else arg, following[0], (arg, *following)))
            place += 1
        place += 1
    return found


def put_word_first(args: Sequence[str]) -> list[str]:
    """The arguments, with a checkpoint or file that comes after options as the first: what is the value of none."""
    given = split_arguments(args)
    first = next((one for one in given if not one.name), None)
    return [part for one in sorted(given, key=lambda one: one is not first) for part in one.parts]


def is_option(arg: str) -> bool:
    """Whether an argument is the name of an option, and no negative number."""
    return arg.startswith("-") and not re.fullmatch(r"-\.?\d.*", arg)


def _lengthen(one: Argument) -> Argument:
    long = SHORT_NAMES.get(one.name.removeprefix("--")) if one.name.startswith("--") else None
    if long is None:
        return one
    parts = (f"--{long}{one.parts[0].removeprefix(one.name)}", *one.parts[1:])
    return replace(one, name=f"--{long}", parts=parts)


def _rank(one: Argument) -> int:
    """Configs first, so that all options count more; then classes, which options are of."""
    return 0 if one.name == "--config" else 1 if one.name in _CLASSES and one.value != "null" else 2


def _refuse_named_run(given: Sequence[Argument]) -> None:
    """Raises `UserError` for a run that an option names, or a checkpoint with photos, where no config is given."""
    values = {one.name.lstrip("-"): one.value for one in given if one.value and is_there(one.value)}
    if "config" in values:
        return
    run = next((values[name] for name in PLACES["CHECKPOINT"].split() if name in values), None)
    photos = next((values[name] for name in PLACES["PHOTOS"].split() if name in values), None)
    photos = photos or next((one.value for one in given if not one.name), None)
    if run and (Run(Path(run)).checkpoints.is_dir() or (photos and run.endswith(".ckpt"))):
        photos = photos or values.get("data.predict")
        typed = f"{quote(run)} {quote(photos) if photos else 'PHOTOS'}"
        raise UserError(f"{run}: run and photos are no options here; type lit-ft predict {typed}")


def _refuse_assignments(given: Sequence[Argument], command: str) -> None:
    """Raises `UserError` for words such as ``epochs=5``."""
    pairs = [
        re.fullmatch(r"\+{0,2}([A-Za-z][\w.-]*)=(.*)", one.value or "", re.DOTALL) for one in given if not one.name
    ]
    if found := [Typed(pair[1], pair[2]) for pair in pairs if pair]:
        known = [one.name for one in found if "." in one.name]  # perhaps; the next command line tells
        raise UserError(describe_unknown(found, known, command))


def _refuse_values(given: Sequence[Argument], command: str) -> None:
    """Raises `UserError` for values that the parser takes as any text, and that mean something in other tools."""
    for one in given:
        key, value = one.name.removeprefix("--"), one.value or ""
        if key == "config" and os.path.isdir(value):
            raise UserError(
                f"`--config`: {value} is a folder; that of photos follows the command: lit-ft finetune {value}"
            )
        if one.name and one.value == "":
            raise UserError(f"`--{key}`: its value is empty; name what is meant, or leave it out")
        if one.name and value == "None":
            raise UserError(f"`--{key}`: None is of Python; give null")
        if one.name and (instead := find_accepted(key, value, command)):
            raise UserError(f"`--{key}`: unknown value {value!r}; {instead}")


def _take_config_of_run(given: list[Argument]) -> list[Argument]:
    """The arguments, with the config of the run that is resumed, where no other is given."""
    names = {one.name for one in given}
    runs = [Run(Path(one.value)) for one in given if one.name == "--resume" and one.value]
    configs = [str(run.config) for run in runs if run.config.is_file()]
    return given if "--config" in names or not configs else [*given, _option("--config", configs[-1])]


def _take_photos(given: Sequence[Argument], command: str) -> list[Argument]:
    """The arguments, with a folder of photos as options: that of its path, and where it is missing, a config."""
    place = next((i for i, one in enumerate(given) if not one.name), None)
    if place is None:
        return [*given]
    words = [one.value or "" for one in given if not one.name]
    _refuse_parts(given, len(words))
    is_one_place = not any(one.name for one in given[place : place + len(words)])
    before = given[place - 1] if place and len(given[place - 1].parts) == 2 else None
    if line := describe_words(words, (before.name, before.value or "") if before else None, is_one_place, command):
        raise UserError(line)
    photos, others = words[0], [one for one in given if one.name]
    names = {one.name for one in others}
    if "--data.root" in names:
        raise UserError(f"{photos}: `data.root` names the photos already; leave one of them out")
    if line := describe_word(photos, command):
        raise UserError(line)
    added = [_option("--data.root", photos)]
    are_arrays = holds_arrays(find_place(photos))
    if "--config" not in names:
        recipe = _option("--config", str(find_recipe(PHOTO_RECIPE)))
        added = [recipe, *(_option(*pair) for pair in OF_ARRAYS.items() if are_arrays), *added]
    elif not gives_data([part for one in others for part in one.parts]):
        added = [_option("--data", OF_ARRAYS["--data"] if are_arrays else "ImageFolderDataModule"), *added]
    return [*added, *others]


def _refuse_parts(given: Sequence[Argument], num_words: int) -> None:
    """Raises `UserError` for a word that is a part of the value before it, or follows an option that takes none."""
    for before, one in pairwise(given):
        if one.name or not before.name or is_there(one.value or ""):
            continue
        if before.name in _FLAGS:
            raise UserError(f"{one.value}: follows no option, as {before.name} takes no value; leave it out")
        if num_words > 1 and len(before.parts) == 2 and not re.fullmatch(NUMBER, before.value or ""):
            whole = quote(f"{before.value} {one.value}")
            raise UserError(f"{one.value}: follows no option; quote what has spaces: {before.name} {whole}")


def _option(name: str, value: str) -> Argument:
    return Argument(name, value, (name, value))
