"""The config that a probe suggests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lit_ft.errors import printable
from lit_ft.probes.survey import BUILT_BY, BackboneChoice


def suggest_config(config: Mapping[str, Any], choice: BackboneChoice, is_probe: bool = False) -> dict[str, Any]:
    """A config with another backbone.

    Args:
        config: The config; what says how its own backbone is built is left out of the options of another one.
        choice: The backbone.
        is_probe: Whether nothing is unfrozen.
    """
    model = dict(config.get("model") or {"class_path": "lit_ft.FineTuneModule"})
    chosen, left_out = {"backbone": choice.name, "weights": choice.weights}, BUILT_BY.keys() - choice.options
    given = {key: value for key, value in (model.get("init_args") or {}).items() if key not in left_out}
    model["init_args"] = {**chosen, **given, **chosen}
    rest = {key: value for key, value in config.items() if key != "model"}
    return {"model": model, **rest, **({"unfreeze": dict(LINEAR_PROBE)} if is_probe else {})}


LINEAR_PROBE = {"strategy": "linear_probe", "head_fit": "solved"}
"""The unfreezing of a run that is no more than a linear probe."""


def format_suggestion(config: Mapping[str, Any], comments: Mapping[str, Sequence[str]], header: Sequence[str]) -> str:
    """A config as YAML.

    Args:
        config: The config.
        comments: Lines of a comment above each of some keys, which are given with their indentation.
        header: Lines of a comment at the top.
    """
    lines = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).splitlines()
    for key, comment in comments.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
        indent = " " * (len(key) - len(key.lstrip()))
        lines[place:place] = [f"{indent}# {printable(line)}" for line in comment]
    about = [f"# {printable(line)}".rstrip() for line in header]
    return "\n".join([*about, *lines, ""])
