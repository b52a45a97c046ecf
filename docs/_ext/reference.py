"""Markdown that is generated: commands and keys of a config from their parsers, recipes from their headers."""

from __future__ import annotations

import csv
import importlib
import inspect
import re
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import jsonargparse
import yaml
from docutils.nodes import make_id

import lit_ft
import lit_ft.data
from lit_ft.backbones.partition.meta import without_data
from lit_ft.cli import main
from lit_ft.cli.commands import COMMANDS, OWN_PARSERS, CommandParser
from lit_ft.cli.config.parser import CALLBACKS, ConfigCLI
from lit_ft.recipes import cluster_files, read_recipe, recipes

_CLASSES: dict[str, str] = {
    "model": "lit_ft.FineTuneModule",
    "lr_scheduler": "lit_ft.optim.WarmupCosine",
    **{
        key: f"{'lit_ft' if callback.__name__ in lit_ft.__all__ else callback.__module__}.{callback.__name__}"
        for key, callback, _ in CALLBACKS
    },
}
"""The keys that take a class, and the class whose options are listed."""

_MODULES = [name for name in lit_ft.data.__all__ if name in lit_ft.__all__]
_NOT_LISTED = ("help", "config", "print_config")

_CURVES = Path(__file__).parents[1] / "curves"
"""A file a recipe with the columns ``epoch`` and ``val/acc`` of the history of a run."""
_WIDTH, _HEIGHT = 240, 90  # of a picture of a recipe

_END_OF_HELP = re.compile(
    r"\s*\((?:required, )?type: (?P<type>.*?)(?:, default: (?P<default>.*?))?(?:, known subclasses:.*)?\)$", re.S
)
_TO_MARKDOWN = (
    (r"``([^`]+)``", r"`\1`"),
    (r":[\w:]+:`~?([^`<]+?)(?: <[^`]*>)?`", r"`\1`"),
    (r"`([^`<]+) <([^`>]+)>`_+", r"[\1](\2)"),
    (r"(?<!`)<(?![^`]*>`)", r"\\<"),
)


@dataclass(frozen=True)
class Option:
    """An option of a parser, as its help describes it.

    Args:
        name: Its name; without dashes, if it is a key.
        value: What follows it on the command line.
        type: The type of its value.
        default: Its default.
        about: What it does, in Markdown.
    """

    name: str
    value: str
    type: str
    default: str
    about: str


class ParserFoundError(Exception):
    """Ends a command where it would parse its arguments."""

    def __init__(self, parser: ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def _stop(parser: ArgumentParser, *_: Any) -> NoReturn:
    raise ParserFoundError(parser)


@cache
def find_parser(*args: str) -> ArgumentParser:
    """The parser that takes the arguments of ``lit-ft ARGS``."""
    with (
        patch.object(CommandParser, "parse_args", _stop),
        patch.object(ConfigCLI, "parse_arguments", lambda _, parser, args: _stop(parser)),
    ):
        try:
            main(args)
        except ParserFoundError as found:
            return found.parser
    raise ValueError(f"lit-ft {' '.join(args)}: parses nothing")


def write_commands() -> str:
    """A section for each command, with the options that it alone takes."""
    keys = _keys_of_all()
    parts = []
    for command, about in COMMANDS.items():
        parts += [f"## lit-ft {command}", about, f"```{{program}} lit-ft {command}\n```"]
        forms = [[command, "X"]] * (command in OWN_PARSERS)
        forms += [[command, "--config", "quickstart"]] * (command not in OWN_PARSERS or command == "predict")
        for form in forms:
            parser = find_parser(*form)
            options = [option for option in _read_options(parser) if option.name not in keys]
            parts.append(_format_usage(command, parser))
            parts += [_format_option(option, isinstance(parser, jsonargparse.ArgumentParser)) for option in options]
    return "\n\n".join(parts)


def _keys_of_all() -> set[str]:
    """The keys that all commands with a config take."""
    first, second = ({option.name for option in _read_options(find_parser(name))} for name in ("plan", "check"))
    return first & second


def _format_usage(command: str, parser: ArgumentParser) -> str:
    places = [action for action in parser._actions if not action.option_strings]
    given = [
        f"[{one.metavar}]" if one.nargs == "?" else f"{one.metavar}{' ...' * (one.nargs == '+')}" for one in places
    ]
    by_config = ["--config FILE [--KEY VALUE ...]"] * isinstance(parser, jsonargparse.ArgumentParser)
    return f"```text\n{' '.join(['lit-ft', command, *given, *by_config])} [OPTIONS]\n```"


def _format_option(option: Option, is_key: bool) -> str:
    name = f"{'--' * is_key}{option.name} {option.value}".strip()
    return f"```{{option}} {name}\n{_format_about(option)}\n```"


def _format_about(option: Option) -> str:
    notes = [f"type `{option.type}`"] * bool(option.type) + [f"default `{option.default}`"] * bool(option.default)
    note = ", ".join(notes)
    return "\n\n".join([option.about, *([f"{note[0].upper()}{note[1:]}."] if notes else [])])


def write_keys() -> str:
    """A section for each key of a config, with the keys below it."""
    parser = find_parser("fit")
    keys = _keys_of_all() - {*_CLASSES, "data", "optimizer"}
    top = [option for option in _read_options(parser) if option.name in keys]
    parts = ["## The run", *(_format_key(option) for option in top if "." not in option.name)]
    for key in ("model", "data", "optimizer", *(key for key in _CLASSES if key != "model")):
        parts += [f"## {key}", *_describe_section(parser, key)]
    parts += ["## trainer", "The options of Lightning's `Trainer`."]
    return "\n\n".join([*parts, *(_format_key(option) for option in top if "." in option.name)])


def _describe_section(parser: ArgumentParser, key: str) -> list[str]:
    """The keys below one that takes a class, of the class that is there by default."""
    if key == "data":
        return _describe_data(parser)
    if key not in _CLASSES:
        return ["Any optimizer of torch; `lit-ft fit --optimizer.help NAME` prints the keys of one."]
    path = _CLASSES[key]
    return [f"`{path}`. {_summarise(path)}", *map(_format_key, _read_class(parser, key, path))]


def _describe_data(parser: ArgumentParser) -> list[str]:
    """The keys of data modules: those that all have in common, then those of each."""
    options = {name: list(_read_class(parser, "data", f"lit_ft.{name}")) for name in _MODULES}
    shared = [option for option in options[_MODULES[0]] if all(option in others for others in options.values())]
    parts = ["These are common to all data modules of lit_ft.", *map(_format_key, shared)]
    for name, own in options.items():
        parts += [f"### {name}", _summarise(f"lit_ft.{name}")]
        parts += [_format_key(option, name) for option in own if option not in shared]
    return parts


def _read_class(parser: ArgumentParser, key: str, path: str) -> Iterator[Option]:
    """The options of a class below a key, with the defaults that a config has there."""
    taking = next(action for action in parser._actions if action.dest == key)
    of_class = jsonargparse.ArgumentParser()
    skip = getattr(taking, "sub_add_kwargs", {}).get("skip", set())
    skip = skip | {"optimizer", "lr_scheduler"} if key == "model" else skip  # which are sections of their own
    of_class.add_class_arguments(_find(path), key, skip=skip, fail_untyped=False)
    of_config = (parser.get_default(key) or {}).get("init_args") if path == _CLASSES.get(key) else None
    known = {action.dest for action in of_class._actions}
    given = {f"{key}.{name}": value for name, value in (of_config or {}).items() if f"{key}.{name}" in known}
    of_class.set_defaults(given)
    return _read_options(of_class)


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _summarise(path: str) -> str:
    return _to_markdown((inspect.getdoc(_find(path)) or "").partition("\n\n")[0])


def _format_key(option: Option, owner: str = "") -> str:
    no_index = ":no-index:\n" * bool(owner)  # several data modules have a key of that name
    return f"```{{confval}} {option.name}\n{no_index}\n{_format_about(option)}\n```"


def _read_options(parser: ArgumentParser) -> Iterator[Option]:
    """The options of a parser, without those that only print; argparse tells of them by private names alone."""
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.default == SUPPRESS or action.dest in _NOT_LISTED:
            continue
        text = formatter._expand_help(action) if action.help else ""
        is_key = isinstance(parser, jsonargparse.ArgumentParser)
        end = _END_OF_HELP.search(text) if is_key else None
        name = action.dest if is_key else (*action.option_strings, action.metavar)[0]
        yield Option(
            name=str(name),
            value="" if not action.option_strings or action.nargs == 0 else str(action.metavar or action.dest.upper()),
            type=end["type"] if end else " | ".join(map(str, action.choices or [])),
            default=(end["default"] or "") if end else _format_default(action),
            about=_to_markdown(text[: end.start()] if end else text),
        )


def _format_default(action: Action) -> str:
    return "" if action.default in (None, False) else str(action.default)


def _to_markdown(text: str) -> str:
    text = " ".join(text.split())
    for pattern, by in _TO_MARKDOWN:
        text = re.sub(pattern, by, text)
    return text


def write_recipes() -> str:
    """The recipes as pictures with their scores, then each with its header and its text."""
    purposes = {recipe.name: _read_purpose(recipe.name) for recipe in recipes()}
    cards = [
        f'<a class="recipe" href="#{make_id(recipe.name)}">{_draw_recipe(recipe.name)}<b>{recipe.name}</b>'
        f"<span>{escape(recipe.score)}</span></a>"
        for recipe in recipes()
    ]
    parts = ['<div class="recipes">', *cards, "</div>"]
    for recipe in recipes():
        table = f"| data | time | score |\n|---|---|---|\n| {recipe.data} | {recipe.time} | {recipe.score} |"
        parts += [f"\n## {recipe.name}", f"\n{purposes[recipe.name]}", f"\n{table}", _quote(recipe.name, "yaml")]
    for name, purpose in cluster_files().items():
        parts += [f"\n## {name}", f"\n{purpose}.", _quote(name, "bash" if "." in name else "yaml")]
    return "\n".join(parts)


def _read_purpose(name: str) -> str:
    """The paragraph that a recipe begins with."""
    lines = takewhile(lambda line: line != "#", read_recipe(name).splitlines())
    return " ".join(line.removeprefix("# ") for line in lines)


def _quote(name: str, language: str) -> str:
    return f"\n```{language}\n{read_recipe(name)}```"


def _draw_recipe(name: str) -> str:
    """A picture of the epochs in which each stage trains, the head at the top, and of the accuracy of a run."""
    stages, epochs = _read_plan(name)
    height, width = _HEIGHT / len(stages), _WIDTH / len(epochs)
    parts = [
        f'<rect class="{"on" if stage in epochs[x] else "off"}" x="{x * width:.1f}" y="{y * height:.1f}"'
        f' width="{width - 1:.1f}" height="{height - 1:.1f}"/>'
        for y, stage in enumerate(reversed(stages))
        for x in range(len(epochs))
    ]
    file = _CURVES / f"{name}.csv"
    if file.is_file():
        with file.open(encoding="utf-8", newline="") as opened:
            points = [(float(row["epoch"]), float(row["val/acc"])) for row in csv.DictReader(opened)]
        low, high = min(y for _, y in points), max(y for _, y in points)
        places = [((x + 0.5) * width, _HEIGHT * (0.9 - 0.8 * (y - low) / ((high - low) or 1))) for x, y in points]
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
    about = f"stages that train by epoch{', and validation accuracy' * file.is_file()}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{about}">{"".join(parts)}</svg>'


def _read_plan(name: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """The stages of a recipe, shallow to deep, and those that train in each epoch."""
    config = yaml.safe_load(read_recipe(name))
    model, unfreeze, epochs = config["model"], config["unfreeze"], config["trainer"]["max_epochs"]
    backbone = without_data(lambda: lit_ft.build_backbone(model["backbone"], weights=None))
    weights = {stage: sum(one.numel() for one in module.parameters()) for stage, module in backbone.stages.items()}
    kept = {key: unfreeze[key] for key in ("head_epochs", "epochs_per_stage", "head_fit") if key in unfreeze}
    weights["head"] = 0  # whose share chooses nothing
    stages = list(weights)
    plan = lit_ft.make_plan(unfreeze["strategy"], stages, epochs, num_weights=weights, **kept)
    phases = [next(one for one in reversed(plan.phases) if one.first_epoch <= epoch) for epoch in range(epochs)]
    return stages, [phase.trainable for phase in phases]
