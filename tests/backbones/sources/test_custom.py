import random
import re

import pytest
import torch
from torch import nn

from lit_ft.backbones.build import build_backbone, input_spec
from lit_ft.backbones.input_spec import InputConfig, InputSpec
from lit_ft.errors import UserError
from lit_ft.model.module import FineTuneModule
from lit_ft.own_code import UserCodeError

SPEC = InputSpec(size=16, resize=16)


class Net(nn.Module):
    """A network of somebody's own, with a classifier and functions between its layers."""

    def __init__(self, width=4, dropout=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2)
        self.norm1 = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.body = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.fc = nn.Linear(width, 7)
        self.functional = dropout

    def features(self, images):
        x = self.drop(torch.relu(self.norm1(self.conv1(images))))
        if self.functional:
            x = nn.functional.dropout(x, 0.5, training=self.training)
        for conv in self.body:
            x = self.drop(x + conv(x) * self.scale)
        return x.mean(dim=(2, 3))

    def forward(self, images):
        return self.fc(self.features(images))


class Split(Net):
    """One whose second stage uses the images again."""

    def forward(self, images):
        x = self.conv1(images)
        return self.fc((self.body[0](x) * self.scale).mean(dim=(2, 3)) + images.mean())


class Branching(Net):
    def forward(self, images):
        return self.fc(self.features(images if images.sum() > 0 else -images))


class Writing(Net):
    def forward(self, images):
        images[:, 0] = 0
        return self.fc(self.features(images))


class Mistyped(Net):
    def forward(self, images):
        return self.fc(self.featuers(images))


class MistypedWithin(Net):
    def __init__(self):
        super().__init__()
        self.norm1 = MistypedNorm()


class MistypedNorm(nn.BatchNorm2d):
    def __init__(self):
        super().__init__(4)

    def forward(self, images):
        return super().forward(featuers)  # noqa: F821


class Hidden(Net):
    """One whose layers are found by none who asks it for its modules."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())]

    def forward(self, images):
        return self.fc(self.hidden[0](torch.relu(self.conv1(images))).mean(dim=(2, 3)))


class Listing(Net):
    def forward(self, images):
        parts = images.split([1, 2], 1)
        parts[0] = parts[0].relu()
        return self.fc(self.features(torch.cat(parts, 1)))


class Positional(Net):
    def forward(self, images):
        return self.fc(self.features(torch.dropout(images, 0.5, self.training)))


class OnlyInTraining(Net):
    def forward(self, images):
        if self.training:
            images = images.flip(-1)
        return self.fc(self.features(images))


class Noisy(Net):
    def forward(self, images):
        return self.fc(self.features(images + torch.randn(3, 1, 1)))


class InPlaceInTraining(Net):
    def forward(self, images):
        x = images.clone()
        if self.training:
            x.mul_(3.0)
        return self.fc(self.features(x))


class SometimesInTraining(Net):
    def forward(self, images):
        x = self.features(images)
        return self.fc(x * 2 if self.training and random.random() < 0.1 else x)


class OfBuffer(Net):
    """One that computes with a buffer before it looks at the images."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, images):
        return self.fc(self.features(images - self.shift.view(1, -1, 1, 1)))


class OnBuffer(OfBuffer):
    def forward(self, images):
        return self.fc(self.features(images * 2 if self.shift.sum() > 5 else images))


class OfParameter(Net):
    def __init__(self):
        super().__init__()
        self.gain = nn.ParameterList([nn.Parameter(torch.zeros(1))])

    def forward(self, images):
        return self.fc(self.features(images * next(self.gain.parameters()).exp()))


class WithoutGradient(Net):
    def forward(self, images):
        with torch.no_grad():
            x = self.norm1(self.conv1(images))
        return self.fc((self.body[1](self.body[0](x)) * self.scale).mean(dim=(2, 3)))


class InHalf(Net):
    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.conv1(images)
        return self.fc((self.body[1](self.body[0](self.norm1(x.float()))) * self.scale).mean(dim=(2, 3)))


class OfTensors(Net):
    def forward(self, images):
        return self.fc(self.features(images * 2 if isinstance(images, torch.Tensor) else images))


class SharedNorm(nn.Module):
    """One whose stages share statistics, but no parameters."""

    def __init__(self):
        super().__init__()
        self.conv, self.deep, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False)

    def forward(self, images):
        return self.norm(self.deep(self.norm(self.conv(images)))).mean(dim=(2, 3))


class AsksForValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else x


class ValuesWithin(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleList([AsksForValues(), nn.Conv2d(4, 4, 1)])


class Viewing(nn.Module):
    """The network of many a tutorial."""

    def __init__(self):
        super().__init__()
        self.conv, self.deep, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 6), nn.Linear(6, 2)

    def forward(self, images):
        x = self.conv(images)
        return self.fc(self.deep(x.view(x.size(0), -1)))


class Patches(nn.Module):
    """Tokens of patches behind a class token, or a map of them with the channels last."""

    def __init__(self, maps=False):
        super().__init__()
        self.patch, self.deep, self.maps = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6), maps
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, images):
        x = self.patch(images)
        if self.maps:
            return self.deep(x.permute(0, 2, 3, 1) + self.token[:, None])
        return self.deep(torch.cat([self.token.expand(x.shape[0], 1, 6), x.flatten(2).transpose(1, 2)], 1))


class Sized(Net):
    """One whose second stage asks for the size of the images."""

    def forward(self, images):
        height = images.shape[2]
        return self.fc(self.body[1](self.body[0](self.conv1(images))).mean(dim=(2, 3)) * self.scale / height)


class Several(Net):
    def forward(self, images):
        return {"out": self.features(images)}


STAGES = {"stem": "conv1|norm1", "middle": r"body\.0|scale", "deep": r"body\.1"}


def config(name="Net", **changes):
    return {"class_path": f"{__name__}.{name}", "stages": STAGES, "classifier": "fc", **changes}


def test_own_network_is_cut_by_its_patterns():
    backbone = build_backbone(
        config(init_args={"width": 6}, stages={"stem": "conv1|norm1", "deep": "body|scale"}), None, spec=SPEC
    )
    assert list(backbone.stages) == ["stem", "deep"]
    assert backbone.num_features == 6
    net = Net(width=6)
    net.load_state_dict({**net.state_dict(), **{key.split(".", 2)[2]: t for key, t in backbone.state_dict().items()}})
    images = torch.randn(2, 3, 16, 16)
    assert backbone.eval()(images).equal(net.eval().features(images))


PATCHES = {"class_path": f"{__name__}.Patches", "stages": {"stem": "patch|token", "deep": "deep"}}


def test_tokens_of_an_own_transformer():
    images = torch.randn(2, 3, 16, 16)
    made = {pool: build_backbone({**PATCHES, "prefix_tokens": 1}, None, pool, SPEC).eval() for pool in ("token", "avg")}
    for pool, backbone in made.items():
        tokens = nn.Sequential(*backbone.stages.values())(images)
        assert tokens.shape == (2, 17, 6)
        expected = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(1)
        torch.testing.assert_close(backbone(images), expected)


@pytest.mark.parametrize("pool", ["own", "avg"])
def test_maps_of_an_own_network_with_their_channels_last(pool):
    backbone = build_backbone({**PATCHES, "init_args": {"maps": True}, "channels_last": True}, None, pool, SPEC)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(backbone(images), nn.Sequential(*backbone.stages.values())(images).mean((1, 2)))


def test_network_that_views_its_maps_trains_in_the_layout_it_needs():
    given = {"class_path": f"{__name__}.Viewing", "stages": {"stem": "conv", "deep": "deep"}, "classifier": "fc"}
    module = FineTuneModule(given, weights=None, classes=2, input={"size": 16})
    assert module.backbone.memory_format == torch.contiguous_format
    module(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).sum().backward()
    usual = build_backbone(config(stages=TWO), None, spec=SPEC)
    assert usual.memory_format == torch.channels_last


def test_parameter_that_two_stages_use_is_told():
    with pytest.raises(UserError, match=r"^model.backbone.stages: middle and deep cannot be cut apart"):
        build_backbone(config(), None, spec=SPEC)


def test_dropout_shared_by_stages_follows_each_of_them():
    backbone = build_backbone(config(stages={"stem": "conv1|norm1", "deep": "body|scale"}), None, spec=SPEC)
    backbone.set_trainable(["deep"])
    backbone.train()
    assert not backbone.stages["stem"].drop.training
    assert backbone.stages["deep"].drop.training
    backbone.set_trainable(["stem"])
    assert backbone.stages["stem"].drop.training
    assert not backbone.stages["deep"].drop.training


TWO = {"stem": "conv1|norm1", "deep": "body|scale"}


class Unbuilt(Net):
    def __init__(self):
        raise RuntimeError("no table of mine")


def test_network_whose_constructor_raises_is_a_user_error_of_its_traceback(tmp_path, monkeypatch):
    with pytest.raises(UserCodeError, match=r"Unbuilt raised RuntimeError at __init__: no table of mine$") as caught:
        build_backbone(config("Unbuilt", stages=TWO), None, spec=SPEC)
    assert "in __init__\n    raise RuntimeError" in caught.value.trace
    (tmp_path / "network_with_a_fault.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    faulty = {**config(stages=TWO), "class_path": "network_with_a_fault.Net"}
    with pytest.raises(UserCodeError, match="raised ZeroDivisionError at the import of network_with_a_fault: divi"):
        build_backbone(faulty, None, spec=SPEC)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (config(stages={"stem": "conv1"}), "model.backbone.stages: parameter scale is in no stage; it must be in"),
        (
            config(stages={**TWO, "more": "conv"}),
            "model.backbone.stages: more: no parameter fits 'conv'",
        ),
        (
            config(stages={**TWO, "more": "conv1"}),
            "model.backbone.stages: parameter conv1.weight is in stem and in more; it must be in exactly one",
        ),
        (config(stages=TWO, classifier=None), "model.backbone.stages: parameter fc.weight is in no stage"),
        (config(stages=TWO, classifer="fc"), "model.backbone: unknown key 'classifer'; nearest: classifier"),
        ({"class_path": "a.B"}, "model.backbone: stages is missing; your own network needs class_path and stages"),
        (config(stages=["conv1"]), "model.backbone.stages: must map names to patterns"),
        (config("Nothing", stages=TWO), f"model.backbone: cannot make {__name__}.Nothing (module"),
        (
            config(init_args={"depth": 1}, stages=TWO),
            f"model.backbone: cannot make {__name__}.Net (Net.__init__() got",
        ),
        (
            config(stages=TWO, init_args={"dropout": True}),
            "model.backbone: Net asks between its stages whether it is",
        ),
        *(
            (
                config(name, stages=TWO),
                f"model.backbone: {name} asks between its stages whether it is training, which",
            )
            for name in ("Positional", "OnlyInTraining", "InPlaceInTraining", "SometimesInTraining")
        ),
        *(
            (config(name, stages=TWO), f"model.backbone: {name} gives something else once it is cut: between its")
            for name in ("Noisy", "WithoutGradient", "InHalf", "OfTensors")
        ),
        (
            config("OfParameter", stages={"stem": "conv1|norm1|gain", "deep": "body|scale"}),
            "model.backbone: OfParameter gives something else once it is cut",
        ),
        (
            config("SharedNorm", stages={"stem": "conv", "deep": "deep"}, classifier=None),
            "model.backbone.stages: norm is used in several stages and keeps statistics; give each stage one",
        ),
        (
            config("ValuesWithin", stages=TWO),
            "model.backbone: its shapes are found with tensors without data, which it cannot take (",
        ),
        (
            config(stages={"stem": "conv1|norm1", "head": "body|scale"}),
            "model.backbone.stages: head cannot be the name",
        ),
        (
            config(stages={"keys": "conv1|norm1", "deep": "body|scale"}),
            "model.backbone.stages: keys cannot be the name",
        ),
        (config(stages={1: "conv1|norm1", 2: "body|scale"}), "model.backbone.stages: must map names to patterns"),
        (config(stages={**TWO, "stem": "conv1(|norm1"}), "model.backbone: stem: 'conv1(|norm1' is no regular"),
        (config(stages=TWO, channels="3"), "model.backbone.channels: must be int, got '3'"),
        ({"class_path": 5, "stages": TWO}, "model.backbone.class_path: must be str, got 5"),
        (config("OnBuffer", stages=TWO), "model.backbone: cannot follow the images through OnBuffer (symbolically"),
        (config("Writing", stages=TWO), "model.backbone: cannot follow the images through Writing ('Proxy' object"),
        (config("Listing", stages=TWO), "model.backbone: cannot follow the images through Listing ("),
        (config("Hidden", stages=TWO), "model.backbone: cannot follow the images through Hidden (module is not"),
        (
            config("Sized", stages={"stem": "conv1|norm1", "middle": r"body\.0", "deep": r"body\.1|scale"}),
            "model.backbone.stages: stem and middle cannot be cut apart: what follows stem takes more than one "
            "tensor (getitem, conv1); make them one stage",
        ),
        (config("Branching", stages=TWO), "model.backbone: cannot follow the images through Branching (symbolically"),
        (config("Several", stages=TWO), "model.backbone: Several gives something else than one tensor"),
        (
            config("Split", stages={"stem": "conv1", "deep": r"body\.0|scale", "rest": r"norm1|body\.1"}),
            "model.backbone.stages: stem and deep cannot be cut apart: what follows stem takes more "
            "than one tensor (images, conv1); make them one stage",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(given, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        build_backbone(given, None, spec=SPEC)


@pytest.mark.parametrize(("given", "text"), [(nn.Flatten(), "of type Flatten"), (nn.Flatten, "the class Flatten")])
def test_network_that_is_an_object_is_refused(given, text):
    with pytest.raises(UserError, match=f"^model.backbone: is {text}; give a name such as resnet50, or your own"):
        FineTuneModule(given, weights=None)


@pytest.mark.parametrize(("name", "fault"), [("Mistyped", AttributeError), ("MistypedWithin", NameError)])
def test_fault_in_the_code_of_an_own_network_keeps_its_traceback(name, fault):
    with pytest.raises(fault, match="featuers") as caught:
        build_backbone(config(name, stages=TWO), None, spec=SPEC)
    assert "forward" in [frame.name for frame in caught.traceback if str(frame.path) == __file__]


def test_own_network_has_no_published_weights():
    with pytest.raises(UserError, match=r"^model.weights: .* has no published weights; give a file, or null"):
        build_backbone(config(stages=TWO), spec=SPEC)


def test_weights_of_an_own_network_come_from_a_file(tmp_path):
    net = Net()
    torch.save({"model": {f"module.{key}": tensor for key, tensor in net.state_dict().items()}}, tmp_path / "net.pt")
    backbone = build_backbone(config(stages=TWO), str(tmp_path / "net.pt"), spec=SPEC)
    images = torch.randn(2, 3, 16, 16)
    assert backbone.eval()(images).equal(net.eval().features(images))


def test_what_is_worked_out_of_a_buffer_follows_its_value(tmp_path):
    net = OfBuffer()
    net.shift.copy_(torch.tensor([1.0, 2.0, 3.0]))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    backbone = build_backbone(config("OfBuffer", stages=TWO), str(tmp_path / "net.pt"), spec=SPEC)
    images = torch.randn(2, 3, 16, 16)
    assert backbone.eval()(images).equal(net.eval().features(images - net.shift.view(1, -1, 1, 1)))
    state = net.state_dict()
    del state["shift"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"1 missing \(shift\)"):
        build_backbone(config("OfBuffer", stages=TWO), str(tmp_path / "less.pt"), spec=SPEC)


def test_network_that_is_no_chain_is_told():
    timm = pytest.importorskip("timm")
    assert "cait_xxs24_224" in timm.list_models()  # its last blocks take the patches and a class token
    with pytest.raises(UserError, match=r"^model.backbone: Cait is no chain of stages: more than one tensor goes"):
        build_backbone("timm/cait_xxs24_224", None)


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, images):
        return self.b(self.a(self.conv(images)).relu()).mean(dim=(2, 3))


def test_tied_layers_of_a_stage_all_stay():
    backbone = build_backbone(config("Tied", stages={"stem": "conv", "deep": "a|b"}, classifier=None), None, spec=SPEC)
    assert sorted(dict(backbone.stages["deep"].named_children())) == ["a", "b"]


def test_tied_layers_of_two_stages_are_refused():
    with pytest.raises(UserError, match=r"parameter b.weight is shared by middle and deep; make them one stage$"):
        build_backbone(config("Tied", stages={"stem": "conv", "middle": "a", "deep": "b"}, classifier=None), None)


def test_network_for_grey_images_takes_them():
    given = config(
        "Tied", stages={"stem": "conv", "deep": "a|b"}, classifier=None, channels=1, init_args={"channels": 1}
    )
    assert InputConfig(size=16, mean=[0.2]).applied_to(input_spec(given, None)).mean == (0.2,)
    assert build_backbone(given, None)(torch.ones(2, 1, 224, 224)).shape == (2, 4)
