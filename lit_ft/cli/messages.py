"""Decides how the parser's complaints are told: the option, what was given, and the nearest valid choice."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lit_ft.console import format_path
from lit_ft.errors import UserError, find_user_error, is_from_user_code, nearest

_GIVEN_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_UNKNOWN = [
    re.compile(r"Option '([^']+)' is not accepted"),
    re.compile(r"[Kk]ey ['\"]([^'\"]+)['\"] is not expected"),
    re.compile(r"[Uu]nrecognized arguments: (?:--)?([^\s=]+)"),
    re.compile(r"No action for key ['\"]([^'\"]+)['\"]"),
    re.compile(r"does not accept option ['\"]([^'\"]+)['\"]"),
]
_STRAY = re.compile(r"[Uu]nrecognized arguments: ((?!-)\S.*)$", re.MULTILINE)
_NEEDED = re.compile(
    r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':\s+the following arguments are required: (\S+)"
)
_OTHER_CLASS = re.compile(r"Import path does not correspond to a subclass of (\w+)")
_CHOICES = re.compile(r"Literal\[([^\]]*)\]\. Got value: (\S+)")
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (\S+)|Import of '?([\w.]+)'? failed|Unexpected import path format: (\S+)"
    r"|Problem with given class_path '([^']+)':\s+(?:No module named|module '[^']*' has no attribute)"
)

_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}

# What jsonargparse takes for the class where an option is given, but no class.
_BASES = [
    (".LightningDataModule", "data module", "DigitsDataModule"),
    (".Optimizer", "optimizer", "AdamW"),
    (".LRScheduler", "scheduler", "WarmupCosine"),
]


def explain(message: str, options: Iterable[str], classes: dict[str, list[str]], command: str = "fit") -> UserError:
    """Turns what jsonargparse says into one line.

    Args:
        message: The parser's message, of many lines.
        options: The names of all options of the command, without dashes.
        classes: For an option that takes a class by name: the names that it knows.
        command: The command.
    """
    if found := _STRAY.search(message):
        return _stray(found[1].split(), command)
    parts = [part for part in re.findall(r"Parser key ['\"]([^'\"]+)['\"]", message) if part]
    # One that is a file of options, were it text, is named twice.
    key = ".".join(part for part, last in zip(parts, ["", *parts], strict=False) if part != last)
    option = f"--{key}: " if key else ""
    for pattern in _UNKNOWN:
        if found := pattern.search(message):
            return _unknown_option(found[1].lstrip("-"), key, message, options)
    if found := _CHOICES.search(message):
        choices = [choice.strip(" '\"") for choice in found[1].split(",")]
        close = nearest(found[2], choices, most=1)
        hint = f"; nearest: {close[0]}" if close else ""
        return UserError(f"{option}unknown value {found[2]!r}{hint} (choose from {', '.join(choices)})")
    if (found := _NEEDED.search(message)) and key:
        return UserError(f"{option}{found[1]} needs {found[2]}; add --{key}.{found[2]} VALUE")
    if (found := _OTHER_CLASS.search(message)) and (value := re.search(r"Given value: (\S+)$", message, re.MULTILINE)):
        choices = [name for name in classes.get(key, []) if not name.startswith("_")]
        hint = f"; choose from {', '.join(choices)}, or derive yours from it" if 0 < len(choices) <= 12 else ""
        return UserError(f"{option}{value[1]} is no {found[1]}{hint}")
    if (found := _NO_CLASS.search(message)) and key in classes:
        given = next(group for group in found.groups() if group)
        close = nearest(given.rpartition(".")[2], classes[key])
        return UserError(f"{option}unknown class {given!r}" + (f"; nearest: {', '.join(close)}" if close else ""))
    if lines := re.findall(r'in "<unicode string>", (line \d+)', message):
        return UserError(f"--config: not valid YAML: {lines[-1]}")
    if key and (found := re.search(r'Unable to load config "(.+)"', message)):
        return UserError(f"{option}{found[1]} does not fit; give its options, as --{key}.NAME VALUE")
    found = None if "Got value" in message else re.search(r"Given value: (\S.*)$", message, re.MULTILINE)
    if key and (found := found or re.search(r"Expected a <class 'NoneType'>\. Got value: (\S+)", message)):
        return UserError(f"{option}{found[1]} does not fit{_fitting(message, found[1], key)}")
    if key == "config" and (found := re.search(r"File does not exist: '([^']+)'", message)):
        return UserError(f"{option}{found[0]}{_nearest_config(Path(found[1]))}")
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    telling = [line for line in lines if re.search(r"Got value|required|Unable to|not found|exist|Problem with", line)]
    leaf = [line for line in telling if not _GIVEN_CLASS.search(line)] or lines[-1:]
    text = re.sub(r"<class '([\w.]+)'>", r"\1", leaf[0]).replace("Got value:", "got")
    text = re.sub(r"^Parser key ['\"][^'\"]+['\"]:\s*", "", text)
    return UserError(f"{option}{text.rstrip('.')}")


def _stray(words: list[str], command: str) -> UserError:
    """The error for values that follow no option."""
    typed = []
    for word in words:
        suffix = Path(word).suffix
        if suffix == ".ckpt":
            typed.append(f"--ckpt_path {word}")
        elif suffix in (".yaml", ".yml"):
            typed.append(f"--config {word}")
        elif command == "predict" or Path(word).is_dir():
            images = "predict" if command == "predict" else "root"
            typed.append(f"--data ImageFolderDataModule --data.{images} {word}")
    if len(typed) < len(words):
        return UserError(f"{words[0]}: follows no option; each value needs one, as in --trainer.max_epochs 3")
    return UserError(f"{' '.join(words)}: without the name of an option; type {' '.join(typed)}")


def _nearest_config(given: Path) -> str:
    """What to type for a config that is not there: the recipe with that name, beside it or in the folder of recipes."""
    folders = (given.parent, Path("configs"), Path(__file__).parents[2] / "configs")
    files = {file.stem: file for folder in reversed(folders) for file in folder.glob("*.yaml")}
    close = nearest(given.stem, files, most=1)
    if not close:
        return ""
    return f"; {'type --config' if close[0] == given.stem else 'nearest:'} {format_path(files[close[0]])}"


def _fitting(message: str, given: str, key: str) -> str:
    """What would fit, as the innermost of the parser's complaints says: the nearest choices, or all, or a type."""
    # The first is the innermost; those around it repeat its choices, and its last line that the whole may be null.
    innermost = message.partition("Given value")[0].rpartition("Errors:")[2]
    choices = dict.fromkeys(re.findall(r"'([^']+)'", " ".join(re.findall(r"Literal\[([^\]]*)\]", message))))
    types = re.findall(r"Expected a <class '(\w+)'>", innermost)
    null = ["null"] * ("NoneType" in types)
    if close := nearest(given, choices):
        return f"; nearest: {', '.join(close)}"
    if choices:
        return f"; choose from {', '.join([*choices, *null])}"
    wanted = [*(_WORDS[name] for name in types if name in _WORDS), *null]
    if wanted == null == ["null"]:
        return f"; give null, or an option that --{key}.help lists, as --{key}.NAME VALUE"
    return f"; give {' or '.join(wanted)}" if wanted else ""


def _unknown_option(name: str, key: str, message: str, options: Iterable[str]) -> UserError:
    """The error for an option that does not exist."""
    given = f"{key}.{name}" if key and not name.startswith(f"{key}.") else name
    known = set(options)
    for path in _GIVEN_CLASS.findall(message):
        module, _, cls = path.rpartition(".")
        known |= {f"{key}.{option}" for option in class_options(getattr(importlib.import_module(module), cls))}
    if given in ("optimizer.lr", "optimizer.init_args.lr"):
        return UserError(f"--{given}: there is no such option; nearest: --model.lr")
    for base, what, example in _BASES:
        if any(path.endswith(base) for path in _GIVEN_CLASS.findall(message)):
            return UserError(f"--{given}: name the {what} first, such as --{key} {example}")
    close = nearest(given, sorted(known))
    return UserError(f"--{given}: there is no such option" + (f"; nearest: --{', --'.join(close)}" if close else ""))


def class_options(cls: Any) -> list[str]:
    """The options of a class, with those that it hands on to its parents and those of the dataclasses among them."""
    options = []
    for home in cls.__mro__:
        parameters = list(inspect.signature(home.__init__).parameters.values())[1:]
        for parameter in parameters:
            options.append(parameter.name)
            if dataclasses.is_dataclass(parameter.default):
                options += [f"{parameter.name}.{field.name}" for field in dataclasses.fields(parameter.default)]
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return options


def class_names(base: type) -> list[str]:
    """The names of all classes below ``base`` that are known by now and can be made."""
    children: list[type] = base.__subclasses__()
    own = [[] if inspect.isabstract(child) else [child.__name__] for child in children]
    return [name for names, child in zip(own, children, strict=True) for name in (*names, *class_names(child))]


@contextmanager
def told_in_one_line(
    before_training: Callable[[], bool], *kinds: type[Exception], packages: Collection[str] = ()
) -> Iterator[None]:
    """Turns what libraries raise over bad options into a mistake of the user's, as long as nothing was trained.

    What was raised in the user's own code, or passed through it, stays as it is, with its traceback.

    Args:
        before_training: Whether nothing was trained yet.
        kinds: Exceptions of a library's own that it raises over options alone, be it after an epoch.
        packages: Installed packages of the user's own.
    """
    caught: tuple[type[Exception], ...] = (ValueError, RuntimeError, OSError, TypeError, ImportError, *kinds)
    try:
        yield
    except caught as error:
        if (mistake := find_user_error(error)) is not None:
            raise_again(mistake, error)
        if not (before_training() or isinstance(error, kinds)) or is_from_user_code(error, packages):
            raise
        raise UserError(f"{_reason(str(error)) or type(error).__name__} (--debug shows where)") from error


def raise_again(mistake: UserError, error: Exception) -> NoReturn:
    """Raises a mistake that was found behind an exception, with all that it came of.

    It is made anew, as ``raise mistake from error`` would put that exception in the place of what the mistake came of.
    """
    if mistake is error:
        raise mistake
    raise UserError(*mistake.args) from error


def _reason(message: str) -> str:
    """The line that tells most of what a library says in several."""
    if found := re.search(r"Problem with given class_path '(?:[\w.]*\.)?(\w+)':\s*\n\s*(\S.*)", message):
        return f"{found[1]}: {found[2]}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line.removeprefix("- ") for line in lines if line.startswith("- ") and "NoneType" not in line]
    # What a value of another type was expected to be tells less.
    return next(iter([line for line in errors if not line.startswith("Expected a")] or errors or lines), "")
