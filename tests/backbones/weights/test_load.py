import os
import re
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import SqueezeNet1_1_Weights

from lit_ft.backbones.build import build_backbone, mnist_cnn, torchvision
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.weights.load import is_file_name, load, read
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
    expected = read(mnist_cnn.tags("mnist_cnn")["MNIST"].local())
    assert {name.split(".", 2)[2]: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(tensor.equal(expected[name.split(".", 2)[2]]) for name, tensor in found.items())


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
    with pytest.raises(UserError, match=r"is of another network: 50 missing \(.*\); 1 unexpected \(a\)$"):
        build_backbone(NAME, path, partial=True)


def test_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    path = written(tmp_path / "net.pth", {"a": torch.ones(1)})

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(torch, "load", denied)
    with pytest.raises(UserError, match=f"^model.weights: not allowed to read {path}$"):
        read(path)
