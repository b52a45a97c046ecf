"""The config that a probe suggests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lit_ft.errors import printable
from lit_ft.probes.survey import BUILT_BY, BackboneChoice


def format_suggestion(
    config: Mapping[str, Any], choice: BackboneChoice, figures: Sequence[str], header: Sequence[str]
) -> str:
    """A config as YAML, with another backbone.

    Args:
        config: The config; what says how its own backbone is built is left out of the options of another one.
        choice: The backbone.
        figures: Lines of a comment at the backbone: the figures behind its choice.
        header: Lines of a comment at the top.
    """
    model = dict(config.get("model") or {"class_path": "lit_ft.FineTuneModule"})
    chosen, left_out = {"backbone": choice.name, "weights": choice.weights}, BUILT_BY.keys() - choice.options
    given = {key: value for key, value in (model.get("init_args") or {}).items() if key not in left_out}
    model["init_args"] = {**chosen, **given, **chosen}
    whole = {"model": model, **{key: value for key, value in config.items() if key != "model"}}
    lines = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True).splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("    backbone:"))
    comment = [f"    # {printable(line)}" for line in figures]
    about = [f"# {printable(line)}".rstrip() for line in header]
    return "\n".join([*about, *lines[:place], *comment, *lines[place:], ""])
