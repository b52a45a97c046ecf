"""What to give instead of an option that does not exist, or of a value that is no name of lit_ft's."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from shlex import quote

from lit_ft.cli.commands import EVALUATIONS
from lit_ft.cli.config.other_names import OF_EVALUATIONS, OTHER_NAMES
from lit_ft.cli.config.other_values import ACCEPTED_VALUES, OUTPUT, PHOTOS, VALUES, Instead

SHORT_NAMES = {
    "epochs": "trainer.max_epochs",
    "batch_size": "data.batch_size",
    "image_size": "model.input.size",
    "folds": "data.folds",
    "seed": "seed_everything",
}
"""The options that everyone sets, which have a short name on the command line and from Python."""

PHOTO_COMMANDS = ("finetune", "fit", "plan", "check", "probe", "tune", "convert")
"""The commands that take a folder of photos by itself."""

_WITH_FOLDER = ("check", "probe", "convert", "download")
"""The commands that write into a folder of their own."""

# Where the habits of other tools say what is meant; in other sections the nearest option of that section does.
_SECTIONS = ("model", "data", "trainer")


@dataclass(frozen=True)
class Typed:
    """An option as it was typed.

    Args:
        name: Its name, with its dashes if it had any.
        value: Its value, if it had one.
    """

    name: str
    value: str | None = None


def describe_unknown(given: Sequence[Typed], known: Collection[str], command: str) -> str:
    """The line for options that do not exist: what to give instead of them, all at once.

    Args:
        given: The options.
        known: The full names of all options that there are.
        command: The command that they follow.

    >>> describe_unknown([Typed("--head_lr", "0.1"), Typed("--workers", "2")], ["model.lr"], "fit")
    '`--head_lr`, `--workers`: there are no such options; give `model.lr` 0.1 `data.num_workers` 2'
    """
    if command != "tune" and any(re.match(r"-*tune\b", one.name) for one in given):
        return "`tune`: is a section for lit-ft tune alone; leave it out here"
    if command == "tune" and (line := _describe_dimension(given[0].name.lstrip("-"), known)):
        return line
    instead, remarks = list[str](), dict[str, list[str]]()
    for one in given:
        name, _, joined = one.name.lstrip("-+").rstrip(",").partition(":")
        value = one.value or joined or None
        others = [option for option in known if option != name] if _has_dashes(one) else known
        if text := _find(name, value, others, command):
            if text.startswith("`"):
                instead.append(text if len(given) == 1 else text.partition(", ")[0])
            else:
                remarks.setdefault(text, []).append(f"`--{name}`")
        elif close := get_close_matches(normalise(name), sorted(known)):
            hint = f"nearest: {', '.join(f'`--{option}`' for option in close)}"
            remarks.setdefault(hint, []).append(f"`--{name}`")
    described = [text if len(given) == 1 else f"{', '.join(names)}: {text}" for text, names in remarks.items()]
    parts = [_reason(given), *([f"give {' '.join(instead)}"] if instead else []), *described]
    names = (f"`--{one.name.lstrip('-')}`" if _has_dashes(one) else one.name for one in given)
    return f"{', '.join(dict.fromkeys(names))}: {'; '.join(parts)}"


def _describe_dimension(name: str, known: Collection[str]) -> str | None:
    """The line for an option of a run that stands in the section of a search, but not in its space."""
    section, _, option = name.partition(".")
    if section != "tune" or option.partition(".")[0] not in {one.partition(".")[0] for one in known}:
        return None
    option = re.sub(r"\.(float|log|int|choice)$", "", option)
    return f"`--{name}`: what is tried stands below space: put {option} there, as in space: {{{option}: ...}}"


def _has_dashes(one: Typed) -> bool:
    """Whether an option begins with two dashes, as all do."""
    return re.match("--[^-]", one.name) is not None


def _reason(given: Sequence[Typed]) -> str:
    if all(map(_has_dashes, given)):
        return "there is no such option" if len(given) == 1 else "there are no such options"
    return "an option begins with two dashes" if len(given) == 1 else "options begin with two dashes"


def name_as_typed(line: str, typed: Iterable[str]) -> str:
    """A message in which options have the short names with which they were given.

    >>> name_as_typed("--trainer.max_epochs: ten does not fit", ["--epochs=ten"])
    '--epochs: ten does not fit'
    """
    names = {one.partition("=")[0].removeprefix("--") for one in typed}
    for short in SHORT_NAMES.keys() & names:
        line = re.sub(rf"(?<![\w.]){re.escape(SHORT_NAMES[short])}(?![\w.])", short, line)
    return line


def _find(name: str, value: str | None, known: Collection[str], command: str) -> str | None:
    if answer := _choose(VALUES.get(name), value, command):  # of what exists, and was given without its dashes
        return answer
    return _choose(PHOTOS, value, command) if name == "data" else find_option(name, value, known, command)


def find_option(name: str, value: str | None, known: Iterable[str], command: str) -> str | None:
    """What to give instead of an option, by its spelling, the habits of other tools, or the end of its name.

    Options are in backquotes. What does not begin with one says what lit_ft does instead.
    """
    given = normalise(name)
    *sections, last = given.split(".")
    same = [option for option in (*SHORT_NAMES, *known) if normalise(option) == given]
    if same:
        return _name_own(same[0], value, command)
    answer = find_answer(given, value, command)
    if answer is None and sections and sections[0] in _SECTIONS:
        answer = _fill(f"`{last}` VALUE", value, command) if last in SHORT_NAMES else find_answer(last, value, command)
    if answer is not None:
        return answer
    ends = [option for option in known if normalise(option).endswith(f".{last}")]
    ends = [option for option in ends if option.split(".")[: len(sections[:1])] == sections[:1]]
    return _name_own(ends[0], value, command) if len(ends) == 1 else None


def _name_own(option: str, value: str | None, command: str) -> str:
    """An option that exists, with its value, or the one that it has where it is given none."""
    switched_on = None if value else _choose(VALUES.get(option), "", command)
    return switched_on or _fill(f"`--{option}` VALUE", value, command)


def find_answer(name: str, value: str | None, command: str = "finetune") -> str | None:
    """What to give instead of an option of another tool; ``None`` if none has one of that name."""
    given = normalise(name)
    answer = OTHER_NAMES.get(given)
    if answer is OUTPUT and command in _WITH_FOLDER:
        answer = "`folder` VALUE"
    if command in EVALUATIONS:
        answer = _of_evaluation(given, command) or (_photos_of(command) if answer is PHOTOS else answer)
    return _choose(answer, value, command)


def find_value(key: str, value: str, command: str) -> str | None:
    """What to give instead of a value that is a name in other tools; ``None`` if it is none."""
    answer = VALUES.get(key)
    if command in EVALUATIONS and value.endswith(".ckpt"):
        answer = _of_evaluation(key, command) or answer
    found = _choose(answer, value, command)
    if command in EVALUATIONS and key == "data" and found and not found.startswith("`"):
        found = _choose(_photos_of(command), value, command)
    return _give(found)


def _of_evaluation(name: str, command: str) -> str | None:
    """The answer to an option where a checkpoint is evaluated: what is meant is that, or what is written."""
    answer = OF_EVALUATIONS.get(name)
    is_predicted = command == "predict" and answer == OF_EVALUATIONS["weights"]
    return "the checkpoint comes first: lit-ft predict VALUE PHOTOS" if is_predicted else answer


def _photos_of(command: str) -> str:
    return "photos follow the checkpoint: lit-ft predict RUN VALUE" if command == "predict" else "`data.root` VALUE"


def find_accepted(key: str, value: str, command: str) -> str | None:
    """Likewise for a value that the parser accepts, as it takes any text there."""
    return _give(_choose(ACCEPTED_VALUES.get(key), value, command))


def _give(answer: str | None) -> str | None:
    return f"give {answer}" if answer and answer.startswith("`") else answer


def describe_short_forms(command: str) -> str:
    """What help has of the options that are shorter to type than their names.

    >>> describe_short_forms("predict")[:46]
    'Short names: --epochs for --trainer.max_epochs'
    """
    names = f"Short names: {', '.join(f'--{short} for --{long}' for short, long in SHORT_NAMES.items())}."
    arrays = "" if command == "convert" else " or a .npz file of arrays"
    photos = (
        f"A folder of photos, with a folder for each class,{arrays} may follow the command: --config image_folder "
        "--data.root."
    )
    return f"{photos} {names}" if command in PHOTO_COMMANDS else names


def normalise(name: str) -> str:
    """A name as options are spelt: in small letters, with underscores.

    >>> normalise("--trainer.max-epochs"), normalise("batchSize")
    ('trainer.max_epochs', 'batch_size')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip("-")).replace("-", "_").lower()


def _choose(answer: Instead | None, value: str | None, command: str) -> str | None:
    """The answer for a value, filled in."""
    if isinstance(answer, Mapping):
        matches = ((re.fullmatch(pattern, value or "", re.IGNORECASE), text) for pattern, text in answer.items())
        answer = next((found.expand(text) for found, text in matches if found), None)
    return None if answer is None else _fill(answer, value, command)


def _fill(answer: str, value: str | None, command: str) -> str:
    """An answer with what was given, and the command."""
    answer = answer.replace("COMMAND", command if command in PHOTO_COMMANDS else "finetune")
    if not value:
        return answer
    return answer.replace("[VALUE]", f"[{value.strip('[](), ')}]").replace("VALUE", quote(value))
