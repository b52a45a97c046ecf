"""Configs of the first release, whose options are read under the names that they have now."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lit_ft.backbones.input_spec import present_options

MODE = "yaml_of_any_release"
"""The parser mode of jsonargparse that reads them, and all others as YAML."""


def _load(text: str) -> Any:
    """The content of a config, or the value of an option such as ``data``."""
    content = get_loader("yaml")(text)
    sections = (content, content.get("model"), content.get("data")) if isinstance(content, dict) else ()
    for section in sections:
        options: Any = section.get("init_args", section) if isinstance(section, dict) else None
        for key, value in [*options.items()] if isinstance(options, dict) else ():
            if key in ("input", "spec") and isinstance(value, dict):
                options[key] = present_options(value)
    return content


set_loader(MODE, _load, (yaml.YAMLError,))
