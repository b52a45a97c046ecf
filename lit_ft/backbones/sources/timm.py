"""Networks of timm: their stages, published weights and input formats. Needs ``lit_ft[timm]``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from timm.data.config import resolve_data_config
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_notrace_functions, get_pretrained_cfg
from torch import Tensor, nn

from lit_ft.backbones.input_spec import Fit, InputSpec
from lit_ft.backbones.partition.chain import Network
from lit_ft.backbones.weights.pretrained import Published
from lit_ft.compat import group_by_matcher
from lit_ft.errors import UserError

PREFIX = "timm/"
MOST_STAGES = 12
FILE = "model.safetensors"
_FITS: dict[str, Fit] = {"center": "crop", "border": "pad", "squash": "squash"}
"""By timm's name, how a photo becomes a square."""


def names() -> list[str]:
    """All of timm's networks."""
    return [PREFIX + name for name in timm.list_models()]


def tags(name: str) -> dict[str, Published]:
    """The published weights of a network by their tag, with ``DEFAULT`` for timm's choice."""
    arch = name.removeprefix(PREFIX)
    default = get_pretrained_cfg(arch)
    configs = {str(cfg.tag): cfg for cfg in get_arch_pretrained_cfgs(arch).values() if cfg.has_weights}
    if default is not None and default.has_weights:
        configs["DEFAULT"] = default
    return {tag: _published(name, cfg) for tag, cfg in configs.items()}


def input_spec(name: str, tag: str | None) -> InputSpec:
    """The images that published weights were evaluated with; without a tag, those of timm's choice.

    Raises:
        UserError: If these are no squares.
    """
    arch = name.removeprefix(PREFIX)
    configs = {cfg.tag: cfg for cfg in get_arch_pretrained_cfgs(arch).values()}
    cfg = configs.get(tag or "", get_pretrained_cfg(arch))
    data = resolve_data_config(pretrained_cfg=cfg.to_dict() if cfg else {})
    height, size = data["input_size"][1:]
    if height != size:
        raise UserError(f"`model.backbone`: {name} takes images of {height} x {size} pixels; only squares can be given")
    return InputSpec(
        size=size,
        resize=math.floor(size / data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        fit=_FITS[data["crop_mode"]],
    )


def licence(name: str, tag: str) -> str:
    """What timm notes of the licence of published weights."""
    arch = name.removeprefix(PREFIX)
    cfg = get_pretrained_cfg(arch if tag == "DEFAULT" else f"{arch}.{tag}")
    given = cfg.license if cfg else None
    return f"Published by timm; licence of the weights: {given or 'not noted there'}."


def build(name: str, spec: InputSpec) -> Network:
    """The network as timm makes it, with random weights, and its stages: timm's own coarse groups of layers.

    Raises:
        UserError: If timm has no groups for it, or it cannot take images of this size.
    """
    module = _created(name.removeprefix(PREFIX), spec)
    stage_of = _stages(name, module)
    return Network(
        module,
        list(dict.fromkeys(stage_of.values())),
        stage_of,
        wrapped=tuple(get_notrace_functions()),
        strict=False,
        prefix_tokens=getattr(module, "num_prefix_tokens", 0),
        class_token=getattr(module, "cls_token", None) is not None,
        channels_last=getattr(module, "output_fmt", "") == "NHWC",
    )


def fitted(module: nn.Module, state: Mapping[str, Tensor], spec: InputSpec) -> Mapping[str, Tensor]:
    """Published tensors as timm itself would take them: renamed, and positions interpolated."""
    own = module.state_dict()
    if all(name in own and tensor.shape == own[name].shape for name, tensor in state.items()):
        return state
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", lambda state, _module: state)
    fit: Mapping[str, Tensor] = convert(dict(state), module)
    return fit


def _created(arch: str, spec: InputSpec) -> nn.Module:
    # Transformers must know the size, and may not adapt to that of each image; of other networks, few take it.
    size: dict[str, Any] = {"img_size": spec.size}
    for options in ({**size, "dynamic_img_size": False}, size):
        try:
            return timm.create_model(arch, pretrained=False, **options)
        except TypeError:
            continue
        except (RuntimeError, AssertionError, ValueError, ArithmeticError) as error:
            raise spec.refused(error) from error
    return timm.create_model(arch, pretrained=False)


def _stages(name: str, module: nn.Module) -> dict[str, str]:
    """The stage of each parameter but the classifier's, shallow to deep; many groups, such as blocks, become four."""
    network: Any = module
    heads = network.get_classifier() if hasattr(network, "get_classifier") else ()
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    classifier = {id(p) for head in heads if head is not None for p in head.parameters()}
    own = [key for key, parameter in module.named_parameters() if id(parameter) not in classifier]
    rest = "~"  # fits nothing, so that its group is that of all which fits nothing: norms after the last stage
    refusal = f"`model.backbone`: timm has no groups of layers for {name}; give it as a class path with its stages"
    try:
        parts = group_by_matcher([*own, rest], network.group_matcher(coarse=True))
    except (AttributeError, AssertionError) as error:
        raise UserError(refusal) from error
    if len(parts) == 1:  # that of what fits nothing
        raise UserError(refusal)
    last = next(i for i, part in enumerate(parts) if rest in part)
    parts[last - 1] += parts.pop(last)
    titles = ["stem", *(f"stage{i}" for i in range(1, len(parts)))]
    if len(parts) > MOST_STAGES:
        titles = ["stem", *(f"blocks{1 + 4 * i // (len(parts) - 1)}" for i in range(len(parts) - 1))]
    return {key: title for title, part in zip(titles, parts, strict=True) for key in part if key != rest}


def _published(name: str, cfg: PretrainedCfg) -> Published:
    title = f"{name} {cfg.tag}"
    file = f"timm_{cfg.architecture}.{cfg.tag}.safetensors"
    licence, about = cfg.license, cfg.origin_url
    if not cfg.hf_hub_id:
        return Published(title, Path(file).stem + Path(str(cfg.url)).suffix, str(cfg.url), licence=licence, about=about)
    cached = try_to_load_from_cache(cfg.hf_hub_id, FILE)
    others = (Path(cached),) if isinstance(cached, str) else ()
    return Published(title, file, hf_hub_url(cfg.hf_hub_id, FILE), others=others, licence=licence, about=about)
