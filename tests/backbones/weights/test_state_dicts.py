"""Weights in all dresses: as torchvision saves them, in the names of its older releases, and as scripts wrap them."""

import argparse
import os
import pathlib
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import filled
from test_torchvision import spec_of
from torch import nn

from lit_ft.backbones.build import build_backbone, torchvision
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.cut import cut
from lit_ft.backbones.partition.meta import without_data
from lit_ft.backbones.pooling import make_pool
from lit_ft.backbones.weights.load import as_loaded
from lit_ft.errors import UserError

NAME = "squeezenet1_1"
SMALLEST = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
}


def made(name):
    """A network of torchvision's with weights and statistics, images for it, and the features that it finds in them."""
    spec = spec_of(name)
    network = without_data(lambda: torchvision.build(name, spec))
    generator = torch.Generator().manual_seed(0)
    for buffer in filled(network.module).buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    pieces = cut(network, spec)
    images = torch.randn(2, 3, spec.size, spec.size, generator=generator)
    with torch.inference_mode():
        features = nn.Sequential(*pieces.stages.values(), make_pool("own", pieces, network)).eval()(images)
    state = network.module.state_dict()
    for key, parameter in network.module.named_parameters():
        if key not in network.stage_of:  # a classifier's, which can be most of a file, and is not read
            state[key] = torch.zeros(1).expand(parameter.shape)
    return state, images, features


def features_of(name, path, images):
    with torch.inference_mode():
        return build_backbone(name, str(path), spec=spec_of(name)).eval()(images)


@pytest.mark.parametrize(
    "name", [n if n in SMALLEST else pytest.param(n, marks=pytest.mark.slow) for n in torchvision.names()]
)
def test_what_torchvision_saves_gives_its_own_features(name, tmp_path):
    state, images, features = made(name)
    assert isinstance(state, OrderedDict)
    assert state._metadata[""]["version"] == (2 if name.startswith("mnasnet") else 1)
    torch.save(state, tmp_path / "net.pth")
    assert features_of(name, tmp_path / "net.pth", images).equal(features)


OLDER = {
    "densenet121": (r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."),
    "vit_b_32": (r"mlp\.([03])\.", lambda found: f"mlp.linear_{1 + int(found[1]) // 3}."),
}


@pytest.mark.parametrize("versions", [True, False], ids=["with versions", "without"])
@pytest.mark.parametrize("name", OLDER)
def test_names_of_older_releases_are_known(name, versions, tmp_path):
    state, images, features = made(name)
    older = OrderedDict((re.sub(*OLDER[name], key), tensor) for key, tensor in state.items())
    assert len(older.keys() - state.keys()) > 40
    if versions:
        older._metadata = {module: {"version": 1} for module in state._metadata}
    torch.save(older, tmp_path / "net.pth")
    assert features_of(name, tmp_path / "net.pth", images).equal(features)


@pytest.mark.parametrize("name", ["densenet121", "mnasnet0_5", "vit_b_32"])
def test_published_tags_are_read_as_they_were_published(name, tmp_path, monkeypatch):
    state, images, features = made(name)
    old = OrderedDict((re.sub(*OLDER.get(name, ("", "")), key), tensor) for key, tensor in state.items())
    old._metadata = state._metadata if name == "mnasnet0_5" else {}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / torchvision.tags(name)["DEFAULT"].file
    place.parent.mkdir(parents=True)
    torch.save(old, place)
    with torch.inference_mode():
        assert build_backbone(name, "DEFAULT", spec=spec_of(name)).eval()(images).equal(features)


@pytest.mark.parametrize("name", ["mnasnet0_5", "mnasnet1_0"])
def test_version_of_an_mnasnet_that_no_file_tells_is_todays(name, tmp_path):
    state, images, features = made(name)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "net.safetensors")
    assert features_of(name, tmp_path / "net.safetensors", images).equal(features)


def test_first_version_of_an_mnasnet_is_read_where_its_layers_were_the_same(tmp_path):
    state, images, features = made("mnasnet1_0")
    state._metadata[""]["version"] = 1
    torch.save(state, tmp_path / "net.pth")
    assert features_of("mnasnet1_0", tmp_path / "net.pth", images).equal(features)
    smaller, _, _ = made("mnasnet0_5")
    smaller._metadata[""]["version"] = 1
    torch.save(smaller, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"^model.weights: the file is of version 1 of torchvision's MNASNet, which"):
        build_backbone("mnasnet0_5", str(tmp_path / "net.pth"))


@pytest.mark.parametrize("prefix", ["module.", "teacher.backbone."])
def test_versions_are_found_behind_a_prefix(prefix, tmp_path):
    state, images, features = made("mnasnet1_0")
    outer = nn.Module()
    below = OrderedDict((prefix + key, tensor) for key, tensor in state.items())
    below._metadata = {"": {"version": 1}, **{f"{prefix}{key}".rstrip("."): v for key, v in state._metadata.items()}}
    torch.save({"net": below, "outer": outer.state_dict()}, tmp_path / "net.pth")
    assert features_of("mnasnet1_0", tmp_path / "net.pth", images).equal(features)


class Renamed(nn.Module):
    """A network of somebody's own, which reads the names and the scale of its first version."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images):
        return self.high(self.low(images).relu()).mean((2, 3))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            for kind in ("weight", "bias"):
                state_dict[f"{prefix}low.{kind}"] = 2 * state_dict.pop(f"{prefix}first.{kind}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_own_network_loads_its_earlier_versions_itself(tmp_path):
    given = {"class_path": f"{__name__}.Renamed", "stages": {"low": "low", "high": "high"}}
    net = Renamed()
    torch.save(net.state_dict(), tmp_path / "new.pth")
    older = OrderedDict((key.replace("low", "first"), tensor) for key, tensor in net.state_dict().items())
    older._metadata = {"": {"version": 1}}
    torch.save({"model": older}, tmp_path / "old.pth")
    found = {age: build_backbone(given, str(tmp_path / f"{age}.pth"), spec=InputSpec(8, 8)) for age in ("new", "old")}
    assert found["new"].stages["low"].low.weight.equal(net.low.weight)
    assert found["old"].stages["low"].low.weight.equal(2 * net.low.weight)
    assert found["old"].stages["high"].high.weight.equal(net.high.weight)


def test_loading_of_older_names_takes_no_memory_for_a_second_network():
    net = Renamed()
    state = net.state_dict()
    loaded = as_loaded(net, state)
    assert {key: tensor.data_ptr() for key, tensor in loaded.items()} == {
        key: tensor.data_ptr() for key, tensor in state.items()
    }
    assert all(not parameter.is_meta for parameter in net.parameters())


@pytest.fixture(scope="module")
def states():
    """Tensors of a network twice, of which the second are the first plus one."""
    first = without_data(lambda: torchvision.build(NAME, InputSpec())).module
    state = {key: tensor.clone() for key, tensor in filled(first).state_dict().items()}
    return state, {key: tensor + 1 for key, tensor in state.items()}


def below(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def first_weight(path, key=None):
    return next(iter(build_backbone(NAME, str(path), key=key).parameters()))


SEVERAL = {
    "teacher": (lambda a, b: {"student": below("module.backbone.", a), "teacher": below("backbone.", b)}, "teacher"),
    "an average": (lambda a, b: {"model": a, "model_ema": b, "args": argparse.Namespace(lr=1)}, "model_ema"),
    "timm's": (lambda a, b: {"state_dict": a, "state_dict_ema": b, "epoch": 3}, "state_dict_ema"),
    "two prefixes": (
        lambda a, b: {"state_dict": below("module.encoder_q.", a) | below("module.encoder_k.", b)},
        "encoder_k",
    ),
    "beside": (lambda a, b: below("net.", a) | below("ema.", b), "ema"),
    "deep": (lambda a, b: {"nets": {"a": {"model": a}, "b": {"model": b}}}, "nets.b"),
}


@pytest.mark.parametrize(("save", "key"), SEVERAL.values(), ids=SEVERAL)
def test_one_of_several_state_dicts_is_named(save, key, states, tmp_path):
    torch.save(save(*states), tmp_path / "net.pth")
    with pytest.raises(UserError) as caught:
        build_backbone(NAME, str(tmp_path / "net.pth"))
    listed = re.fullmatch(
        rf"model.weights: {tmp_path}/net.pth holds weights of this network under (\S+) and (\S+); choose with "
        r"model.weights_key (\S+)",
        str(caught.value),
    )
    assert f".{key}." in f".{listed[2]}." or f".{key}." in f".{listed[1]}."
    assert first_weight(tmp_path / "net.pth", key).equal(states[1]["features.0.weight"])
    assert first_weight(tmp_path / "net.pth", listed[3]).shape == (64, 3, 3, 3)


def test_names_within_those_of_the_network_can_be_chosen(states, tmp_path):
    torch.save(states[0] | below("ema.", states[1]), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"is of another network: 52 unexpected \(ema.features.0.weight, "):
        first_weight(tmp_path / "net.pth")
    assert first_weight(tmp_path / "net.pth", "ema").equal(states[1]["features.0.weight"])


def test_key_that_is_not_there_is_told_with_those_that_are(states, tmp_path):
    torch.save({"student": states[0], "teacher": states[1]}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"^model.weights_key: unknown key of .* 'techer'; nearest: teacher"):
        build_backbone(NAME, str(tmp_path / "net.pth"), key="techer")


def test_key_is_for_files(states):
    with pytest.raises(UserError, match=r"^model.weights_key: is for a file of weights, and MNIST is published"):
        build_backbone("mnist_cnn", "MNIST", key="teacher")


ONE = {
    "encoder": lambda a: below("encoder.", a) | {"decoder.weight": torch.ones(1)},
    "a teacher alone": lambda a: {"teacher": below("backbone.", a), "teacher_head": {"weight": torch.ones(2)}},
    "an average alone": lambda a: {"model_ema": a, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}},
    "options": lambda a: {"model": a, "args": argparse.Namespace(out=pathlib.PosixPath("x"), lr=[1, {"a": None}])},
    "numbers": lambda a: {"model": a, "best": np.float64(0.5), "scores": np.ones(3), "number": np.int32(2)},
    "Lightning's average": lambda a: {
        "state_dict": below("net.", a),
        "current_model_state": below("net.", {key: tensor + 1 for key, tensor in a.items()}),
        "pytorch-lightning_version": "2.6.0",
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("save", ONE.values(), ids=ONE)
def test_only_state_dict_of_the_network_is_found(save, zipped, states, tmp_path):
    torch.save(save(states[0]), tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    assert first_weight(tmp_path / "net.pth").equal(states[0]["features.0.weight"])


class Evil(argparse.Namespace):
    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_options_beside_weights_run_no_code(states, tmp_path, monkeypatch):
    monkeypatch.setattr("argparse.Namespace.__setstate__", lambda *_: pytest.fail("ran"), raising=False)
    monkeypatch.setattr("argparse.Namespace.__init__", lambda *_, **__: pytest.fail("ran"))
    options = argparse.Namespace.__new__(argparse.Namespace)
    torch.save({"model": states[0], "args": options}, tmp_path / "net.pth")
    assert first_weight(tmp_path / "net.pth").equal(states[0]["features.0.weight"])
    evil = Evil.__new__(Evil)
    evil.folder = str(tmp_path / "ran")
    torch.save({"model": states[0], "args": evil}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"\(holds more than tensors, which could run code\)$"):
        first_weight(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()
