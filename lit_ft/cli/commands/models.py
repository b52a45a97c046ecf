"""``lit-ft models`` and ``lit-ft describe``: sizes, stages, images and weights of backbones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from lit_ft.backbones.backbone import Backbone, StageCost, stage_costs, total
from lit_ft.backbones.build import NetworkName, backbone_names, build_backbone, input_spec, source_of
from lit_ft.backbones.input_spec import InputConfig
from lit_ft.backbones.partition.meta import without_data
from lit_ft.cli.commands import COMMANDS, CommandParser
from lit_ft.console import format_table
from lit_ft.errors import UserError, for_command_line, nearest, printable


def run(command: str, args: Sequence[str]) -> None:
    """Runs ``models`` or ``describe``; an error in the arguments is a user error."""
    parser = CommandParser(prog=f"lit-ft {command}", description=COMMANDS[command])
    if command == "models":
        about = "part of a name, or a quoted shell pattern such as 'resnet*' or 'timm/vit_*'; timm's only after timm/"
        parser.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help=about)
    else:
        about = "a name that lit-ft models lists, or a config (.yaml), such as that of a network of your own"
        parser.add_argument("name", metavar="NAME", help=about)
        parser.add_argument("--size", type=int, metavar="S", help="height and width of the images, if not its own")
    given = parser.parse_args(args)
    try:
        _list_models(given.pattern) if command == "models" else _describe(given.name, given.size)
    except UserError as error:
        text = str(error).removeprefix("model.backbone: ").replace("model.input.size", "--size")
        raise UserError(f"{command}: {text}") from error


def _list_models(pattern: str) -> None:
    """Prints a row for each backbone whose name fits a shell pattern, or contains it, as soon as it is known."""
    every = backbone_names(pattern)
    wild = any(sign in pattern for sign in "*?[")
    names = [name for name in every if (fnmatchcase(name, pattern) if wild else pattern in name)]
    if not names:
        close = nearest(pattern.replace("*", "").replace("?", ""), every)
        hint = f"nearest: {', '.join(close)}" if close else "lit-ft models lists them all"
        raise UserError(f"no backbone fits {pattern!r}; {hint}")
    width = max(map(len, names))
    columns = (f"<{width}", ">8", ">8", ">5", ">6")
    print(format_table([("name", "M params", "GFLOPs", "input", "stages", "weights here")], columns))
    for name in names:
        here = ", ".join(tag for tag, notes in weights_tags(name).items() if "here" in notes) or "-"
        try:
            backbone, stages = measure(name)
        except Exception as error:  # a network can fail in any way, and the others are still wanted
            text = for_command_line(error.args[0]) if isinstance(error, UserError) else str(error)
            reason = printable(" ".join(text.split())) or type(error).__name__
            print(f"{name:{width}}  cannot be used: {reason}", flush=True)
            continue
        whole = total(stages)
        counts = (f"{whole.parameters / 1e6:.2f}", f"{whole.macs / 1e9:.3f}", f"{backbone.spec.size}", f"{len(stages)}")
        print(format_table([(name, *counts, here)], columns), flush=True)


def _describe(name: str, size: int | None) -> None:
    """Prints the stages of a backbone, or of that of a config, the images that it expects and its published weights."""
    model: dict[str, Any] = _read_model(name) if name.endswith((".yaml", ".yml")) else {"backbone": name}
    network, images = model["backbone"], model.get("input", InputConfig())
    if size is not None:
        images = replace(images, size=size, resize=None)
    options = {key: model[key] for key in ("weights", "pool", "stem") if key in model}
    backbone, stages = measure(network, images, **options)
    whole = total(stages)
    rows = [("stage", "parameters", "share", "GFLOPs", "share", "output")]
    for stage in (*stages, whole):
        shape = " x ".join(map(str, stage.shape)) if stage.shape else f"pool -> {backbone.num_features} features"
        parameters = (f"{stage.parameters:,}", f"{stage.parameters / whole.parameters:.1%}")
        macs = (f"{stage.macs / 1e9:.3f}", f"{stage.macs / whole.macs:.1%}")
        rows.append((printable(stage.name), *parameters, *macs, shape))
    print(format_table(rows, ("<", ">13", ">6", ">8", ">6")))
    spec = backbone.spec
    print(f"\ninput    {spec.channels} x {spec.size} x {spec.size}; {spec.in_words}")
    print(f"mean     {', '.join(f'{value:g}' for value in spec.mean)}")
    print(f"std      {', '.join(f'{value:g}' for value in spec.std)}")
    tags = [f"{tag} ({', '.join(notes)})" if notes else tag for tag, notes in weights_tags(network).items()]
    print(f"weights  {', '.join(tags) or 'none published'}")


def measure(
    name: NetworkName, images: InputConfig | None = None, weights: str | None = "DEFAULT", **options: Any
) -> tuple[Backbone, list[StageCost]]:
    """A backbone without data, and what its stages cost.

    Args:
        name: The network.
        images: What differs from the images of its weights.
        weights: The tag whose images these are.
        options: ``pool`` and ``stem``, as for `build_backbone`.
    """
    spec = (images or InputConfig()).applied_to(input_spec(name, weights if source_of(name).tags(str(name)) else None))
    backbone = without_data(lambda: build_backbone(name, weights=None, spec=spec, **options))
    return backbone, stage_costs(backbone)


def weights_tags(name: NetworkName) -> dict[str, list[str]]:
    """The tags of a network's published weights: whether they are the default, and whether they lie on this machine."""
    tags = source_of(name).tags(str(name))
    default = tags.get("DEFAULT")
    own = {tag: weights for tag, weights in tags.items() if tag not in ("", "DEFAULT")} or tags
    return {
        tag: ["default"] * (weights == default and tag != "DEFAULT") + ["here"] * (weights.local() is not None)
        for tag, weights in own.items()
    }


def _read_model(path: str) -> dict[str, Any]:
    """The options of the model in a config."""
    try:
        model = dict(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["model"])
        if not isinstance(model["backbone"], (str, dict)):
            raise TypeError(f"backbone: {model['backbone']}")
        return {**model, "input": InputConfig.read(model.get("input"))}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        fault = "not a config with model.backbone, and model.input as it must be"
        raise UserError(f"{path}: {fault} ({reason})") from error
