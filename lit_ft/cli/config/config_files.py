"""Config files that the parser cannot read: what is wrong with them, and where."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from lit_ft.cli.config.arguments import split_arguments
from lit_ft.console import format_path

_OTHERS = {
    ".py": "is a Python script; run it with python, or give a config in YAML",
    ".toml": "is TOML; a config is YAML",
    ".ini": "is INI; a config is YAML",
    ".ckpt": "is a checkpoint; to resume it, `ckpt_path`, and to begin with its weights, `model.weights`",
}


def describe_config_fault(args: Sequence[str]) -> str | None:
    """What is wrong with the first config of a command line that cannot be read as YAML; ``None`` if all can be.

    A config may also be typed in place of its file, as ``{model: {lr: 0.1}}``. Likewise what a search has.
    """
    for one in split_arguments(args):
        key, path = one.name.removeprefix("--"), Path(one.value or "")
        if key not in ("config", "tune") or not one.value:
            continue
        is_there = os.path.exists(path)  # of what is too long for a path, Path.exists raises that
        if one.value.lstrip().startswith(("{", "[")) and not is_there:
            if fault := _find_syntax_error(one.value):
                return f"`{key}`: {fault}"
            continue
        is_lost = key == "tune" and path.suffix and ": " not in one.value
        fault = _find_fault(path) if is_there else "is not there" if is_lost else None
        if fault is None and key == "tune" and is_there and "tune" in yaml.safe_load(path.read_text("utf-8")):
            fault = f"is a config, with a section tune; give `--config` {format_path(path)}"
        if fault:
            return f"`{key}`: {format_path(path)} {fault}"
    return None


def _find_fault(path: Path) -> str | None:
    if path.is_dir():
        names = sorted(file.name for file in path.glob("*.y*ml"))
        return f"is a folder; name one of its files{': ' * bool(names)}{', '.join(names[:5])}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except UnicodeDecodeError:
        is_other = path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff")  # as PowerShell writes what is printed to it
        return "is text in UTF-16; save it in UTF-8" if is_other else "is no text; a config is YAML"
    other = _OTHERS.get(path.suffix.lower())
    if fault := _find_syntax_error(text):
        return other or fault
    if not isinstance(yaml.safe_load(text), dict):
        return other or "has no options in it, such as model: {backbone: resnet50}"
    return None


def _find_syntax_error(text: str) -> str | None:
    try:
        yaml.safe_load(text)
    except yaml.YAMLError as error:
        return f"is not valid YAML: {_describe_syntax(error, text)}"
    return None


def _describe_syntax(error: yaml.YAMLError, text: str) -> str:
    """The line where YAML ends to be that, and why."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    number, problem = error.problem_mark.line + 1, str(error.problem)
    line = f"line {number}"
    if "\\t" in problem:
        return f"{line} is indented with a tab; use spaces"
    if "escape" in problem:
        return f"{line}: in double quotes a backslash begins an escape; use single quotes, or / in the path"
    rest = (text.splitlines() or [""])[number - 1 :]
    return f"{line} ({problem}){f': {rest[0].strip()[:60]}' if rest else ''}"
