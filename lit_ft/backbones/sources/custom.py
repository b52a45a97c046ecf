"""Networks of one's own: a class path, and a pattern for each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from lit_ft.backbones import HEAD
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.chain import Network
from lit_ft.backbones.partition.cut import assign
from lit_ft.backbones.weights.load import as_loaded
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.backbones.weights.trust import making_network, network_class
from lit_ft.errors import UserError, unknown


@dataclass(frozen=True)
class OwnNetwork:
    """Any ``nn.Module`` from images ``(B, C, H, W)`` to features ``(B, D)`` or logits.

    Args:
        class_path: Where the class is, such as ``mypackage.models.MyNet``.
        stages: For each stage, shallow to deep, a regular expression that the names of its parameters begin with.
        classifier: Such an expression for the parameters that the new head replaces.
        init_args: Arguments of the class.
        channels: Number of channels of the images that it takes.
        channels_last: Whether its last stage gives maps ``(B, h, w, D)`` rather than ``(B, D, h, w)``.
        prefix_tokens: For transformers, the number of tokens before those of patches; the first is the class token.
    """

    class_path: str
    stages: dict[str, str]
    classifier: str | None = None
    init_args: dict[str, Any] = field(default_factory=dict)
    channels: int = 3
    channels_last: bool = False
    prefix_tokens: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> OwnNetwork:
        """The network that a config describes.

        Raises:
            UserError: If it is an object, or a key is missing or unknown, or has a value that cannot be.
        """
        if not isinstance(given, Mapping):
            found = f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"
            raise UserError(
                f"`model.backbone`: is {found}; give a name such as resnet50, or your own network by its class_path, "
                "init_args and stages, from which a checkpoint can make it again"
            )
        allowed = [option.name for option in fields(cls)]
        for key in given:
            if key not in allowed:
                raise unknown("key", str(key), allowed, "`model.backbone`")
        for key in ("class_path", "stages"):
            if not given.get(key):
                raise UserError(f"`model.backbone`: {key} is missing; your own network needs class_path and stages")
        network = cls(**given)
        if not isinstance(network.stages, Mapping) or not all(
            isinstance(title, str) and isinstance(pattern, str) for title, pattern in network.stages.items()
        ):
            raise UserError("`model.backbone.stages`: must map names to patterns, shallow to deep")
        for title, pattern in [*network.stages.items(), ("classifier", network.classifier or "")]:
            if title == HEAD or "." in title or hasattr(nn.ModuleDict, title):
                raise UserError(f"`model.backbone.stages`: {title} cannot be the name of a stage; choose another one")
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise UserError(f"`model.backbone`: {title}: {pattern!r} is no regular expression ({error})") from error
        for key, kind in (("class_path", str), ("init_args", Mapping), ("channels", int), ("prefix_tokens", int)):
            if not isinstance(getattr(network, key), kind):
                raise UserError(f"`model.backbone.{key}`: must be {kind.__name__}, got {getattr(network, key)!r}")
        return network

    def tags(self, name: str) -> dict[str, Published]:
        """None: its weights come from a file."""
        return {}

    def input_spec(self, name: str, tag: str | None) -> InputSpec:
        """The usual images of 224 pixels; `model.input` changes them."""
        if self.channels == 3:
            return InputSpec()
        return InputSpec(mean=(0.5,) * self.channels, std=(0.5,) * self.channels)

    def licence(self, name: str, tag: str) -> str:
        """Unknown, as nothing is published."""
        return "Its licence is not known."

    def build(self, name: str, spec: InputSpec) -> Network:
        """Makes the network and finds the stage of each of its parameters.

        Raises:
            UserError: If the class cannot be imported or made, is no ``nn.Module``, or the patterns do not fit.
        """
        network = network_class(self.class_path)
        with making_network(self.class_path, "at __init__"):
            made = network(**self.init_args)
        return Network(
            made,
            list(self.stages),
            assign(made, self.stages, self.classifier),
            prefix_tokens=self.prefix_tokens,
            class_token=self.prefix_tokens > 0,
            channels_last=self.channels_last,
        )

    def fitted(self, module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec) -> Mapping[str, Tensor]:
        """The tensors as the network's own loading has them, which may know those of its earlier versions."""
        return as_loaded(module, state)
