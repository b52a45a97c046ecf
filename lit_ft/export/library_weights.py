"""Weights under the names of torchvision or timm, whose own networks load them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lit_ft.backbones.backbone import StageOutput
from lit_ft.backbones.build import build_library_network
from lit_ft.errors import UserError
from lit_ft.export.description import FORMAT, TOLERANCE, installed_versions
from lit_ft.model.image_model import ImageModel

_INSTEAD = "export to .onnx or .pt2, which have the whole network"


@dataclass(frozen=True)
class LibraryWeights:
    """The content of a ``.safetensors`` file.

    Args:
        content: Its bytes.
        code: The line of Python that builds the network that loads it.
        difference: The largest difference between the logits of that network and the model's.
    """

    content: bytes
    code: str
    difference: float


def build_library_weights(module: ImageModel) -> LibraryWeights:
    """The weights of a model as torchvision or timm name them, with the new classifier instead of the old one.

    The library's own network has loaded them, strictly, and was compared with the model.

    Raises:
        UserError: If the library's network cannot be what the model is.
    """
    name, spec = module.hparams["backbone"], module.backbone.spec
    head = _find_linear(module)
    if not isinstance(name, str) or name == "mnist_cnn":
        own = name if isinstance(name, str) else "your network"
        raise UserError(f".safetensors: {own} is of no library; {_INSTEAD}")
    for option in ("stem", "pool"):
        if (given := module.hparams[option]) != "own":
            raise UserError(f".safetensors: {name} has not the `model.{option}` {given} in its library; {_INSTEAD}")
    if spec.channels != 3 and not name.startswith("timm/"):
        raise UserError(f".safetensors: {name} takes 3 channels in torchvision, the model {spec.channels}; {_INSTEAD}")
    library = build_library_network(name, "own", spec)
    classifier = _find_classifier(name, library.module, library.others, head.in_features)
    state = module.backbone.state_dict().items()
    tensors = {library.names[key]: value for key, value in state if key in library.names}
    tensors |= {f"{classifier}.weight": head.weight.detach(), f"{classifier}.bias": head.bias.detach()}
    tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
    library.module.set_submodule(classifier, nn.Linear(head.in_features, head.out_features))
    difference = _compare(library.module, tensors, module)
    code = _code(name, module)
    return LibraryWeights(save(tensors, _metadata(module, name, code)), code, difference)


def _find_linear(module: ImageModel) -> nn.Linear:
    layers = [layer for layer in module.head if not isinstance(layer, nn.Dropout)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise UserError(
            f".safetensors: libraries have a classifier of one linear layer, and the head is more; {_INSTEAD}"
        )
    return layers[0]


def _find_classifier(name: str, network: nn.Module, others: list[str], num_features: int) -> str:
    """The name of the linear layer that the new one takes the place of."""
    owner = others[0].rpartition(".")[0] if others else ""
    is_linear = owner and sorted(others) == [f"{owner}.bias", f"{owner}.weight"]
    layer = network.get_submodule(owner) if is_linear else None
    if not isinstance(layer, nn.Linear) or layer.in_features != num_features:
        kind = "a convolution" if isinstance(layer, nn.Conv2d) else f"{len(others)} tensors ({', '.join(others[:4])})"
        raise UserError(
            f".safetensors: the classifier of {name} is {kind} where the new head is one linear layer; {_INSTEAD}"
        )
    return owner


def _compare(network: nn.Module, tensors: dict[str, Tensor], module: ImageModel) -> float:
    """The largest difference of logits, in a network that has loaded the weights; raises `UserError` if it is large."""
    network.load_state_dict(tensors, strict=True)
    spec, generator = module.backbone.spec, torch.Generator().manual_seed(0)
    images = torch.randn(2, spec.channels, spec.size, spec.size, generator=generator)
    with torch.inference_mode():
        wanted = module(StageOutput(images, 0))  # as they are normalised
        found = network.eval()(images)
    difference = float((found - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise UserError(
            f".safetensors: the network of the library differs from the model, by up to {difference:.2g}: it "
            f"pools or normalises in another way; {_INSTEAD}"
        )
    return difference


def _code(name: str, module: ImageModel) -> str:
    """The line of Python that builds the network."""
    spec, is_timm = module.backbone.spec, name.startswith("timm/")
    options: dict[str, Any] = {"num_classes": len(module.class_names)}
    if is_timm and spec.channels != 3:
        options["in_chans"] = spec.channels
    if (size := _size_option(name)) is not None:
        options[size] = spec.size
    given = ", ".join([repr(name.removeprefix("timm/")), *(f"{key}={value}" for key, value in options.items())])
    return f"timm.create_model({given})" if is_timm else f"torchvision.models.get_model({given})"


def _size_option(name: str) -> str | None:
    """The option for the size of the images, in networks whose position embeddings depend on it."""
    if name.startswith("vit"):
        return "image_size"
    if not name.startswith("timm/"):
        return None
    import timm

    arch = name.removeprefix("timm/")
    created: Any = timm.create_model(arch, pretrained=False, num_classes=0)
    return "img_size" if hasattr(created, "patch_embed") and hasattr(created.patch_embed, "img_size") else None


def _metadata(module: ImageModel, name: str, code: str) -> dict[str, str]:
    spec, versions = module.input_spec, installed_versions(["lit_ft", "torch", "torchvision"])
    return {
        FORMAT: versions["lit_ft"],
        "format": "pt",
        "network": name,
        "build": code,
        "task": module.task.name,
        "classes": json.dumps(module.class_names),
        "input": json.dumps({key: getattr(spec, key) for key in ("size", "resize", "interpolation", "mean", "std")}),
        "fit": spec.fit,
        **({} if spec.bands is None else {"bands": json.dumps(spec.bands)}),
        "units": json.dumps(module.task.standardisation.plain() if module.task.standardisation else None),
        "versions": json.dumps(versions),
    }
