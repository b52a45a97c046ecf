"""What words of a command line are that belong to no option, where one is the folder of photos."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from lit_ft.assets import shared_folder
from lit_ft.backbones.sources.torchvision import names as network_names
from lit_ft.cli.commands import COMMANDS
from lit_ft.cli.config.advice import SHORT_NAMES, Typed, describe_unknown, find_answer
from lit_ft.recipes import recipe_names

NUMBER = r"[-+]?[\d.]+(e-?\d+)?"
"""What looks like a number."""


def describe_words(
    words: Sequence[str], before: tuple[str, str] | None, is_one_place: bool, command: str
) -> str | None:
    """What is wrong with words, of which one would be the folder of photos; ``None`` if there is one alone.

    Args:
        words: The words.
        before: The option before the first of them, with its value.
        is_one_place: Whether no option is between them.
        command: The command.
    """
    if before and re.fullmatch(NUMBER, words[0]) and re.fullmatch(NUMBER, before[1]):
        return f"{words[0]}: follows no option; a list is one argument, as {before[0]} [{before[1]},{','.join(words)}]"
    if before and (len(words) > 1 or not is_there(words[0])):
        whole = " ".join((before[1], *words))
        if is_there(whole) or before[0] == "--data.root":
            return f"{words[0]}: follows no option; quote a path that has spaces: {before[0]} {quote(whole)}"
    if len(words) == 1:
        return None
    if command == "convert" and len(words) == 2 and is_there(words[0]):
        return f"{words[1]}: without the name of an option; give `--folder` {quote(words[1])}"
    whole, parents = " ".join(words), {Path(word).parent for word in words}
    if is_there(whole):
        return f"{whole}: quote a path that has spaces: lit-ft {command} {quote(whole)}"
    if len(set(words)) == 1 and is_there(words[0]):
        return f"{words[0]}: is given {len(words)} times; give it once"
    if all(map(is_there, words)):
        is_one = len(parents) == 1 and str(*parents) != "."
        folder = quote(str(*parents)) if is_one else "the folder that has them in it"
        return f"{words[0]} and {len(words) - 1} more: one folder is taken; give {folder}"
    rest = next(word for word in words if not is_there(word))
    if line := describe_word(rest, command):
        return line
    following = words[words.index(rest) + 1 :]
    typed = Typed(rest.lstrip("/"), following[0] if following else None)
    if typed.name in SHORT_NAMES or (find_answer(typed.name, typed.value, command) or "").startswith("`"):
        return describe_unknown([typed], (), command)
    if is_one_place and not is_there(words[0]):
        return f"{rest}: follows no option; quote a path that has spaces, as {quote(whole)}"
    return f"{', '.join(words)}: one folder is taken; leave the others out, or name their options"


def describe_word(word: str, command: str) -> str | None:
    """What a word is if it is no folder of photos; ``None`` if it may be one."""
    if os.path.isdir(word):
        return None
    suffix = Path(word).suffix.lower()
    typed = {
        ".yaml": f"`--config` {quote(word)}",
        ".yml": f"`--config` {quote(word)}",
        ".ckpt": f"`--ckpt_path` {quote(word)} to resume, or `--model.weights` {quote(word)} to begin with its weights",
    }.get(suffix)
    if word in recipe_names():
        typed = f"`--config` {word}"
    if word in network_names():
        typed = f"`--model.backbone` {word}"
    if typed:
        return f"{word}: without the name of an option; give {typed}"
    if suffix == ".py":
        return f"{word}: a Python script; run it with python, or give a config in YAML with `--config`"
    if word in COMMANDS:
        return f"{word}: a second command; one is run at a time, as lit-ft {word}"
    if re.fullmatch(NUMBER, word):
        return f"{word}: follows no option; each value needs one, as in --epochs 3"
    return None


def is_there(word: str) -> bool:
    """Whether a path exists, itself or below the shared folder of data; not what is too long for one."""
    return os.path.exists(find_place(word))


def find_place(word: str) -> Path:
    """A path, itself or, where it does not exist, below the shared folder of data."""
    own, shared = Path(word).expanduser(), shared_folder()
    return own if shared is None or os.path.exists(own) else shared / word
