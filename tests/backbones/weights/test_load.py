import argparse
import os
import pathlib
import re
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_runs import filled
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights

from lit_ft.backbones.build import build_backbone, make_pool, mnist_cnn, torchvision
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.cut import cut
from lit_ft.backbones.partition.meta import without_data
from lit_ft.backbones.weights.load import as_loaded, is_file_name, load, read
from lit_ft.errors import UserError

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def published():
    """The state dict of a network as torchvision publishes it."""
    torch.manual_seed(1)
    return torchvision.build(NAME, InputSpec()).module.state_dict()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torch's, and no network."""

    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("lit_ft.backbones.weights.pretrained.download_url_to_file", unreachable)
    monkeypatch.setenv("LIT_FT_DATA", str(tmp_path / "data"))
    folder = tmp_path / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / Path(SqueezeNet1_1_Weights.DEFAULT.url).name


def written(path, content):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return str(path)


def assert_equal(backbone, published):
    """The convolutions of the backbone, in order, are those of the published network."""
    expected = [tensor for name, tensor in published.items() if name.startswith("features.")]
    found = list(backbone.state_dict().values())
    assert len(found) == len(expected) == 50
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_published_names_are_read_from_a_file(tmp_path, published, suffix):
    path = written(tmp_path / f"net{suffix}", published)
    assert_equal(build_backbone(NAME, path), published)


def test_file_without_the_classifier_is_enough(tmp_path, published):
    state = {name: tensor for name, tensor in published.items() if not name.startswith("classifier.")}
    assert_equal(build_backbone(NAME, written(tmp_path / "net.pth", state)), published)


def test_classifier_of_another_size_is_passed_over(tmp_path, published):
    state = {**published, "classifier.1.weight": torch.zeros(7, 512, 1, 1), "classifier.1.bias": torch.zeros(7)}
    assert_equal(build_backbone(NAME, written(tmp_path / "net.pth", state)), published)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_own_names_are_read_from_a_file(tmp_path, suffix):
    trained = build_backbone(NAME, None)
    path = written(tmp_path / f"backbone{suffix}", trained.state_dict())
    found = build_backbone(NAME, path).state_dict()
    assert all(tensor.equal(found[name]) for name, tensor in trained.state_dict().items())


def checkpoint(backbone):
    """A checkpoint as Lightning writes it, of whose tensors those of the backbone are wanted."""
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    others = {"head.0.weight": torch.ones(3, 512), "penalty.stages/stem/0/weight": torch.ones(1)}
    return {"state_dict": {**state, **others}, "epoch": 3, "hyper_parameters": {"backbone": NAME}}


@pytest.mark.parametrize("name", [NAME, "mnist_cnn", "convnext_tiny"])
def test_backbone_of_a_checkpoint_is_read(tmp_path, name):
    trained = build_backbone(name, None)
    found = build_backbone(name, written(tmp_path / "best.ckpt", checkpoint(trained))).state_dict()
    assert all(tensor.equal(found[key]) for key, tensor in trained.state_dict().items())


@pytest.mark.parametrize("weights", ["DEFAULT", "MNIST"])
def test_weights_in_the_package_need_no_network(hub, weights):
    found = build_backbone("mnist_cnn", weights).state_dict()
    file, spec = read(mnist_cnn.tags("mnist_cnn")["MNIST"].local()), mnist_cnn.input_spec("mnist_cnn", weights)
    expected = mnist_cnn.fitted(torch.nn.Module(), file, spec)
    assert {name.split(".", 2)[2] for name in found} == expected.keys()
    assert all(tensor.equal(expected[name.split(".", 2)[2]].float()) for name, tensor in found.items())


def test_weights_in_the_cache_need_no_network(hub, published):
    torch.save(published, hub)
    assert_equal(build_backbone(NAME), published)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"features.0.weight": None}, "1 missing (features.0.weight)"),
        (
            {"features.0.weight": None, "layer1.weight": torch.ones(1)},
            "1 missing (features.0.weight); 1 unexpected (la",
        ),
        ({"a": torch.ones(1)}, "1 unexpected (a)"),
        ({name: torch.ones(1) for name in "abcd"}, "4 unexpected (a, b, c, …)"),
        ({"features.0.bias": torch.ones(5)}, "1 of another shape (features.0.bias)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, published, changes, text):
    state = {name: tensor for name, tensor in {**published, **changes}.items() if tensor is not None}
    path = written(tmp_path / "net.pth", state)
    with pytest.raises(UserError, match=re.escape(f"model.weights: {path} is of another network: {text}")):
        build_backbone(NAME, path)


def test_checkpoint_of_another_backbone_is_refused(tmp_path):
    path = written(tmp_path / "best.ckpt", checkpoint(build_backbone("mnist_cnn", None)))
    with pytest.raises(
        UserError, match=r"is of another network: 50 missing \(.*, …\); 4 unexpected \(stages.conv.conv"
    ):
        build_backbone(NAME, path)


def test_weights_that_do_not_fit_change_nothing():
    target = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=r"1 of another shape \(bias\)"):
        load(target, {"weight": torch.ones(2, 2), "bias": torch.ones(3)}, ["weight", "bias"], "file")
    assert all(tensor.equal(before[name]) for name, tensor in target.state_dict().items())


def test_counters_that_old_files_lack_are_not_missed():
    target = nn.BatchNorm1d(2)
    state = {name: torch.full((2,), 7.0) for name in ("weight", "bias", "running_mean", "running_var")}
    load(target, state, list(target.state_dict()), "file")
    assert target.running_var.tolist() == [7.0, 7.0]
    with pytest.raises(UserError, match=r"1 missing \(running_mean\)"):
        load(target, {k: v for k, v in state.items() if k != "running_mean"}, list(target.state_dict()), "file")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, published, suffix, share):
    path = tmp_path / f"net{suffix}"
    content = Path(written(path, published)).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"^model.weights: cannot read {path}: not a file of weights \(damaged"):
        read(path)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x9a\x00", b"0", b"e\xff", b"version https://git-lfs"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_something_else_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"not a file of weights \(damaged, or not written by torch.save\)$"):
        read(path)


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(self.folder),)

    def __init__(self, folder):
        self.folder = folder


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "net.pth"
    torch.save({"a": Evil(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"\(holds more than tensors, which could run code\)$"):
        read(path)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_cache_is_refused_and_not_run(tmp_path, hub):
    torch.save({"a": Evil(tmp_path / "ran")}, hub)
    with pytest.raises(UserError, match=rf"^model.weights: cannot read {hub}: .*which could run code\)$"):
        build_backbone(NAME)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2), {"state_dict": {}}, {"model": {"a": 1}}])
def test_file_without_a_state_dict_is_refused(tmp_path, content):
    path = written(tmp_path / "net.pth", content)
    with pytest.raises(UserError, match=f"^model.weights: {path} holds no state dict$"):
        read(path)


def test_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"^model.weights: no such file: {tmp_path}/net.pth$"):
        build_backbone(NAME, f"{tmp_path}/net.pth")


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save({"a": torch.ones(1)}, tmp_path / "net.pth")
    assert read("~/net.pth")["a"].item() == 1


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("DEFAULT", False), ("IMAGENET1K_V1", False), ("net.pth", True), ("runs/net", True), ("net.safetensors", True)],
)
def test_files_are_told_from_tags(weights, expected):
    assert is_file_name(weights) is expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet50", "nearest: IMAGENET1K_V2, IMAGENET1K_V1 (choose from IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT)"),
        ("mnist_cnn", "(choose from MNIST, DEFAULT)"),
    ],
)
def test_unknown_tag_lists_the_tags(name, text):
    with pytest.raises(UserError) as caught:
        build_backbone(name, "IMAGENET1K_V3")
    assert str(caught.value).startswith(f"model.weights: unknown weights tag of {name} 'IMAGENET1K_V3'")
    assert str(caught.value).endswith(text)


def test_weights_that_cannot_be_fetched_are_told_with_their_place(hub, tmp_path):
    with pytest.raises(UserError) as caught:
        build_backbone(NAME)
    assert str(caught.value) == (
        f"model.weights: could not fetch {NAME} IMAGENET1K_V1 (<urlopen error no route to host>); put "
        f"{SqueezeNet1_1_Weights.DEFAULT.url} at {tmp_path}/data/weights/{hub.name}, name a local file, or give null "
        "for random weights"
    )


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 and no more"])
def test_damaged_file_in_the_cache_is_told_with_its_place(hub, content):
    hub.write_bytes(content)
    with pytest.raises(UserError, match=f"^model.weights: cannot read {hub}: not a file of weights"):
        build_backbone(NAME)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "backbone.", "model.", "module._orig_mod.", "model.backbone."]
)
def test_prefixes_of_training_scripts_are_recognised(tmp_path, published, prefix):
    state = {prefix + name: tensor for name, tensor in published.items()}
    outer = prefix.partition(".")[0]
    others = {"n_averaged": torch.tensor(3)} if outer != "backbone" else {"head.weight": torch.ones(1)}
    assert_equal(build_backbone(NAME, written(tmp_path / "net.pth", {**state, **others})), published)


@pytest.mark.parametrize("wrap", [("state_dict",), ("model",), ("model_state_dict",), ("model", "state_dict")])
def test_wrappers_of_training_scripts_are_recognised(tmp_path, published, wrap):
    content = published
    for key in wrap:
        content = {key: content, "epoch": 3, "optimizer": {"state": {}}}
    assert_equal(build_backbone(NAME, written(tmp_path / "net.pth", content)), published)


@pytest.mark.long
def test_checkpoint_of_a_backbone_with_other_pooling_is_read(tmp_path):
    trained = build_backbone("convnext_tiny", None)  # its own pooling has a norm
    found = build_backbone("convnext_tiny", written(tmp_path / "best.ckpt", checkpoint(trained)), "avg").state_dict()
    assert found
    assert all(tensor.equal(trained.state_dict()[key]) for key, tensor in found.items())


def test_partial_weights_fill_what_fits_and_tell_the_rest(tmp_path, published):
    state = {name: tensor for name, tensor in published.items() if name != "features.3.squeeze.weight"}
    state["features.0.weight"] = torch.zeros(5)
    path = written(tmp_path / "net.pth", state)
    with pytest.raises(UserError, match=r"1 of another shape .*; to load what fits: model.partial_weights true$"):
        build_backbone(NAME, path)
    with pytest.warns(
        UserWarning, match=r"fills 48 of 50: 1 missing \(features.3.squeeze.weight\); 1 of another shape"
    ):
        backbone = build_backbone(NAME, path, partial=True)
    found, expected = list(backbone.state_dict().values()), [t for n, t in published.items() if "features" in n]
    assert [a.equal(b) for a, b in zip(found, expected, strict=True)] == [False, True, False] + [True] * 47


def test_partial_weights_of_quite_another_network_are_refused(tmp_path):
    path = written(tmp_path / "net.pth", {"a": torch.ones(1)})
    with pytest.raises(
        UserError,
        match=r"network: 50 missing \(.*\); 1 unexpected \(a\); give that network as model.backbone$",
    ):
        build_backbone(NAME, path, partial=True)


def test_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    path = written(tmp_path / "net.pth", {"a": torch.ones(1)})

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(UserError, match=f"^model.weights: not allowed to read {path}$"):
        read(path)


SMALLEST = {
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "inception_v3", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t"),
}


def spec_of(name):
    size = {"inception_v3": 96, "maxvit_t": 224, "googlenet": 96, "alexnet": 96, "vit_h_14": 70}.get(name, 64)
    return InputSpec(size=size, resize=size)


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


@pytest.mark.long
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


class EvilOptions(argparse.Namespace):
    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_options_beside_weights_run_no_code(states, tmp_path, monkeypatch):
    monkeypatch.setattr("argparse.Namespace.__setstate__", lambda *_: pytest.fail("ran"), raising=False)
    monkeypatch.setattr("argparse.Namespace.__init__", lambda *_, **__: pytest.fail("ran"))
    options = argparse.Namespace.__new__(argparse.Namespace)
    torch.save({"model": states[0], "args": options}, tmp_path / "net.pth")
    assert first_weight(tmp_path / "net.pth").equal(states[0]["features.0.weight"])
    evil = EvilOptions.__new__(EvilOptions)
    evil.folder = str(tmp_path / "ran")
    torch.save({"model": states[0], "args": evil}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"\(holds more than tensors, which could run code\)$"):
        first_weight(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()
