"""Messages about options that the parser refuses: the option, what was given, and the nearest valid choice."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lit_ft.cli.config.advice import SHORT_NAMES, Typed, describe_unknown, find_answer, find_value
from lit_ft.cli.config.arguments import is_option
from lit_ft.cli.config.known_names import PHOTO_MODULES, class_options, describe_other_module, find_photo_module
from lit_ft.cli.config.words import describe_word
from lit_ft.console import format_path
from lit_ft.errors import UserError, nearest
from lit_ft.recipes import recipe_names

_GIVEN_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_UNKNOWN = (
    r"Option '([^']+)' is not accepted",
    r"[Kk]ey ['\"]([^'\"]+)['\"] is not expected",
    r"[Uu]nrecognized arguments: (?:--)?([^\s=]+)",
    r"No action for key ['\"]([^'\"]+)['\"]",
    r"does not accept option ['\"]([^'\"]+)['\"]",
)
_NO_CLASS = (
    r"Expected a dot import path string: (\S+)|Import of '?([\w.]+)'? failed|Unexpected import path format: (\S+)"
    r"|Problem with given class_path '([^']+)':\s+(?:No module named|module '[^']*' has no attribute)"
)
_NEEDS = r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':\s+the following arguments are required: (\S+)"

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "tuple": "a list",
}

# What jsonargparse takes for the class where an option is given, but no class.
_BASES = [
    (".LightningDataModule", "data module", "ImageFolderDataModule"),
    (".Optimizer", "optimizer", "AdamW"),
    (".LRScheduler", "scheduler", "WarmupCosine"),
]


@dataclass(frozen=True)
class Complaint:
    """What jsonargparse refuses, and what would have been right.

    Args:
        message: The parser's message, of many lines.
        options: The names of all options of the command, without dashes.
        classes: For an option that takes a class by name: the names that it knows.
        command: The command, which ``args`` follow.
    """

    message: str
    options: Collection[str] = ()
    classes: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    command: str = "fit"
    args: Sequence[str] = ()

    @property
    def key(self) -> str:
        """The option, by its full name."""
        names = [""]
        for part in re.findall(r"(?:Parser key|Group) ['\"]([^'\"]+)['\"]", self.message):
            # One that is a file of options, were it text, is named twice; and what is below a group in full.
            is_below = f"{part}.".startswith(f"{names[-1]}.")
            names = [*names[:-1], part] if is_below else [*names, part]
        return ".".join(names).removeprefix(".")

    @property
    def prefix(self) -> str:
        """What its line begins with."""
        return f"`--{self.key}`: " if self.key else ""

    def find_value(self, option: str) -> str | None:
        """The value of an option on the command line."""
        pairs = [(arg.partition("="), then) for arg, then in pairwise([*self.args, "--"])]
        values = [value if equals else then for (name, equals, value), then in pairs if name.lstrip("-") == option]
        return values[-1] if values and not values[-1].startswith("--") else None

    def find_unrecognized(self) -> list[Typed]:
        """The options of the command line that the parser does not know, with their values."""
        found = self.search("[Uu]nrecognized arguments: (.*)$")
        words = found[1].split() if found else []
        typed = dict.fromkeys(arg for arg in self.args if is_option(arg) and arg.split()[0] in words)
        names = [arg.partition("=")[0] for arg in typed]
        return [Typed(name, self.find_value(name.lstrip("-"))) for name in names]

    def search(self, pattern: str) -> re.Match[str] | None:
        """The first match in the message; the end of a line is an end."""
        return re.search(pattern, self.message, re.MULTILINE)


def explain(complaint: Complaint) -> UserError:
    """The error in one line: the most specific explanation, of which the last always has an answer."""
    explanations = (
        _stray,
        _unknown_option,
        _other_value,
        _unknown_choice,
        _missing,
        _wrong_class,
        _wrong_file,
        _wrong_value,
    )
    # A value for a part of a group, as jsonargparse (4.51) prints it.
    message = re.sub(r"NestedArg\(key='[^']*', val='([^']*)'\)", r"\1", complaint.message)
    complaint = dataclasses.replace(complaint, message=message)
    for explanation in explanations:
        if line := explanation(complaint):
            return UserError(line)
    return UserError(f"{complaint.prefix}{pick_line(complaint.message).rstrip('.')}")


def _stray(complaint: Complaint) -> str | None:
    """Values that follow no option."""
    found = complaint.search(r"[Uu]nrecognized arguments: ((?!-)\S.*)$")
    if found is None:
        return None
    words = found[1].split()
    typed = []
    for word in words:
        suffix = Path(word).suffix
        if suffix == ".ckpt":
            typed.append(f"`--ckpt_path` {word}")
        elif suffix in (".yaml", ".yml"):
            typed.append(f"`--config` {word}")
        elif complaint.command == "predict" or os.path.isdir(word):
            images = "predict" if complaint.command == "predict" else "root"
            typed.append(f"`--data` ImageFolderDataModule `--data.{images}` {word}")
    if len(typed) < len(words) and (line := describe_word(words[0], complaint.command)):
        return line
    if len(typed) < len(words):
        return f"{words[0]}: follows no option; each value needs one, as in `--trainer.max_epochs` 3"
    return f"{' '.join(words)}: without the name of an option; type {' '.join(typed)}"


def _unknown_option(complaint: Complaint) -> str | None:
    found = next(filter(None, map(complaint.search, _UNKNOWN)), None)
    if found is None:
        return None
    key, name = complaint.key, found[1].lstrip("-")
    given = f"{key}.{name}" if key and not name.startswith(f"{key}.") else name
    paths = _GIVEN_CLASS.findall(complaint.message)
    typed = complaint.find_unrecognized() or [Typed(f"--{given}", complaint.find_value(given) or "VALUE")]
    if given in SHORT_NAMES and typed[0].name == f"--{given}":  # as they are made long before, none is typed
        section, _, last = SHORT_NAMES[given].rpartition(".")
        place = f" below {section}" if section else ""
        return f"`--{given}`: is a short name for the command line; in a config it is {last}{place}"
    for base, what, example in _BASES:
        if any(path.endswith(base) for path in paths) and not find_answer(given, None):
            example = (find_photo_module(name.removeprefix("init_args.")) if key == "data" else None) or example
            photos = f", or a folder of photos, as in lit-ft {complaint.command} PHOTOS" if key == "data" else ""
            return f"`--{given}`: of which {what}? name it, as `--{key}` {example}{photos}"
    if paths and given in ("data.predict", "data.init_args.predict"):
        cls = paths[-1].rpartition(".")[2]
        return f"`--{given}`: {cls} takes no images to predict; name `--data` ImageFolderDataModule before it"
    if paths and key == "data" and (line := describe_other_module(paths[-1], name.removeprefix("init_args."))):
        return f"`--{given}`: {line}"
    known = {*complaint.options, *(f"data.{option}" for cls in PHOTO_MODULES for option in class_options(cls))}
    for path in paths:
        module, _, cls = path.rpartition(".")
        known |= {f"{key}.{option}" for option in class_options(getattr(importlib.import_module(module), cls))}
    line = describe_unknown(typed, known, complaint.command)
    is_of_config = not any(arg.startswith(typed[0].name) for arg in complaint.args)
    return _as_of_config(line) if is_of_config else line


def _as_of_config(line: str) -> str:
    """A line about a key of a config, which has no short names, and whose value may be anything."""
    for short, long in SHORT_NAMES.items():
        line = line.replace(f"`{short}`", f"`{long}`").replace(f"`--{short}`", f"`--{long}`")
    return line.replace(" VALUE", "")


def _other_value(complaint: Complaint) -> str | None:
    """A value that means something in other tools, for an option that takes others."""
    value = complaint.find_value(complaint.key)
    if value is None and (found := complaint.search(r"(?:Got value|Given value): (\S+)$")):
        value = found[1]
    if complaint.key == "trainer.callbacks" and value not in complaint.classes.get(complaint.key, ()):
        return None
    is_folder = complaint.key == "data" and value is not None and os.path.isdir(value)
    meant = f"{value.rstrip('/')}/" if value and is_folder else value  # as a path, and no name of a class
    instead = find_value(complaint.key, meant, complaint.command) if meant else None
    return f"{complaint.prefix}{value} does not fit; {instead}" if instead else None


def _unknown_choice(complaint: Complaint) -> str | None:
    """A value that is not among the few that there are."""
    found = complaint.search(r"Literal\[([^\]]*)\]\. Got value: (\S+)")
    if found is None:
        return None
    choices = [choice.strip(" '\"") for choice in found[1].split(",")]
    close = nearest(found[2], choices, most=1)
    hint = f"; nearest: {close[0]}" if close else ""
    return f"{complaint.prefix}unknown value {found[2]!r}{hint} (choose from {', '.join(choices)})"


def _missing(complaint: Complaint) -> str | None:
    """An option that a class or the command needs, or the value of an option."""
    if (found := complaint.search(_NEEDS)) and complaint.key:
        return f"{complaint.prefix}{found[1]} needs {found[2]}; add `--{complaint.key}.{found[2]}` VALUE"
    if found := complaint.search(r"^the following arguments are required: ([\w.]+)$"):
        return f"`--{found[1]}`: required; add `--{found[1]}` VALUE"
    if found := complaint.search(r"^argument (?:-\w/)?(--[\w.]+): expected one argument"):
        # jsonargparse names only the part that the option is of, such as --model for --model.lr.
        bare = [arg for arg, then in pairwise([*complaint.args, "--"]) if then.startswith("--")]
        option = next((arg for arg in bare if arg.startswith(f"{found[1]}.")), found[1])
        if instead := find_value(option.removeprefix("--"), "", complaint.command):
            return f"`{option}`: no value follows; {instead}"
        return f"`{option}`: no value follows; add one, as `{option}` VALUE"
    return None


def _wrong_class(complaint: Complaint) -> str | None:
    """A class that is derived from something else, or that does not exist."""
    found = complaint.search(r"Import path does not correspond to a subclass of (\w+)")
    known = complaint.classes.get(complaint.key)
    if found and (value := complaint.search(r"Given value: (\S+)$")):
        choices = [name for name in known or () if not name.startswith("_")]
        hint = f"; choose from {', '.join(choices)}, or derive yours from it" if 0 < len(choices) <= 12 else ""
        return f"{complaint.prefix}{value[1]} is no {found[1]}{hint}"
    if known is not None and (found := complaint.search(_NO_CLASS)):
        given = next(filter(None, found.groups()))
        close = nearest(given.rpartition(".")[2], known)
        return f"{complaint.prefix}unknown class {given!r}" + (f"; nearest: {', '.join(close)}" if close else "")
    return None


def _wrong_file(complaint: Complaint) -> str | None:
    """A config that is no YAML, or not there; proposes the one of that name, beside it or among the recipes."""
    if complaint.search("^Unexpected config: "):
        return "`--config`: one has no options in it; it needs some, such as model: {backbone: resnet50}"
    found = complaint.search(r"File does not exist: '([^']+)'")
    if found is None or complaint.key != "config":
        return None
    given = Path(found[1])
    files = {name: name for name in recipe_names()}
    files |= {file.stem: str(format_path(file)) for file in given.parent.glob("*.yaml")}
    hint = ""
    if close := nearest(given.stem, files, most=1):
        hint = f"; {'type `--config`' if close[0] == given.stem else 'nearest:'} {files[close[0]]}"
    return f"{complaint.prefix}{found[0]}{hint}"


def _wrong_value(complaint: Complaint) -> str | None:
    """A value of another type, or for what has options of its own."""
    if not complaint.key:
        return None
    if found := complaint.search(r'Unable to load config "(.+)"'):
        return f"{complaint.prefix}{found[1]} does not fit; give its options, as `--{complaint.key}.NAME` VALUE"
    found = None if "Got value" in complaint.message else complaint.search(r"Given value: (\S.*)$")
    found = found or complaint.search(r"Expected a <class 'NoneType'>\. Got value: (\S+)")
    if found is not None:
        is_name = "Literal[" in complaint.message
        given = f"unknown value {found[1]!r}" if is_name else f"{found[1]} does not fit"
        return f"{complaint.prefix}{given}{_fitting(complaint.message, found[1], complaint.key)}"
    found = complaint.search(r"Expected a <class '(\w+)'>\. Got value: (\S.*)$")
    if found and re.fullmatch(r"\d+,\d+", found[2]) and found[1] == "float":
        return f"{complaint.prefix}{found[2]} does not fit; give a number with a point, {found[2].replace(',', '.')}"
    wanted = found and _WORDS.get(found[1])
    return f"{complaint.prefix}{found[2]} does not fit; give {wanted}" if found and wanted else None


def _fitting(message: str, given: str, key: str) -> str:
    """What would fit, as the innermost of the parser's complaints says: the nearest choices, or all, or a type."""
    # The first is the innermost; those around it repeat its choices, and its last line that the whole may be null.
    innermost = message.partition("Given value")[0].rpartition("Errors:")[2]
    choices = dict.fromkeys(re.findall(r"'([^']+)'", " ".join(re.findall(r"Literal\[([^\]]*)\]", message))))
    types = re.findall(r"Expected a <class '(\w+)'>", innermost)
    null = ["null"] * ("NoneType" in types)
    if choices:
        close = nearest(given, choices)
        every = f"choose from {', '.join([*choices, *null])}"
        return f"; nearest: {', '.join(close)} ({every})" if close else f"; {every}"
    wanted = [*(_WORDS[name] for name in types if name in _WORDS), *null]
    if wanted == null == ["null"]:
        return f"; give null, or an option that `--{key}.help` lists, as `--{key}.NAME` VALUE"
    return f"; give {' or '.join(wanted)}" if wanted else ""


def pick_line(message: str) -> str:
    """The line of a library's message that has most to say."""
    message = re.sub(r"Parser key ['\"][^'\"]*['\"]:", "", message)
    if found := re.search(r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':\s*\n\s*(\S.*)", message):
        return f"{found[1]}: {found[2]}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "NoneType" not in line]
    # What a value of another type was expected to be tells less.
    return next(iter([line for line in errors if not line.startswith("Expected a")] or errors or lines), "")
