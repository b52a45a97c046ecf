"""Weights for the networks of torchvision and timm."""

import json

import pytest
import safetensors
import torch
import torchvision  # by whose name the code builds a network
from safetensors.torch import load

from lit_ft.errors import UserError
from lit_ft.export.library_weights import build_library_weights
from lit_ft.model.module import FineTuneModule


def module_of(name, **options):
    torch.manual_seed(0)
    return FineTuneModule(name, **{"weights": None, "classes": ["a", "b"], **options}).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/test_resnet", {"input": {"channels": 1}}),
        ("timm/test_vit", {"input": {"size": 64, "resize": 64}, "head": {"dropout": 0.1}}),
        ("shufflenet_v2_x0_5", {}),
    ],
)
def test_network_of_the_library_loads_them_strictly_and_gives_the_same(name, options, tmp_path):
    timm = pytest.importorskip("timm")
    module = module_of(name, **options)
    weights = build_library_weights(module)
    network = eval(weights.code, {"timm": timm, "torchvision": torchvision}).eval()
    network.load_state_dict(load(weights.content), strict=True)
    images = torch.randn(2, module.backbone.spec.channels, module.backbone.spec.size, module.backbone.spec.size)
    with torch.no_grad():
        torch.testing.assert_close(network(images), module(images), atol=1e-4, rtol=1e-4)
    (path := tmp_path / "a.safetensors").write_bytes(weights.content)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (json.loads(metadata["classes"]), metadata["build"]) == (["a", "b"], weights.code)
    assert json.loads(metadata["input"])["size"] == module.backbone.spec.size


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("mnist_cnn", {}, "mnist_cnn is of no library; export to"),
        (
            "squeezenet1_1",
            {},
            "the classifier of squeezenet1_1 is a convolution where the new head is one linear layer",
        ),
        ("shufflenet_v2_x0_5", {"head": {"hidden": [4]}}, "libraries have a classifier of one linear layer"),
        ("shufflenet_v2_x0_5", {"head": {"kind": "cosine"}}, "libraries have a classifier of one linear layer"),
        ("shufflenet_v2_x0_5", {"stem": "small"}, r"has not the model\.stem small in its library"),
        ("shufflenet_v2_x0_5", {"input": {"channels": 1}}, "takes 3 channels in torchvision, the model 1"),
    ],
)
def test_what_no_library_can_express_is_refused(name, options, text):
    with pytest.raises(UserError, match=rf"^\.safetensors: .*{text}"):
        build_library_weights(module_of(name, **options))
