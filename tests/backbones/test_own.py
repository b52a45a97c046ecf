import re

import pytest
import torch
from torch import nn

from lit_ft.backbones import InputConfig, InputSpec, build_backbone, input_spec
from lit_ft.errors import UserError

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


class Auxiliary(Net):
    """What it does in training only is not on the way to its features; it drops some of these for the classifier."""

    def forward(self, images):
        aux = self.fc(images.mean(dim=(2, 3)).repeat(1, 2)[:, :4]) if self.training else None
        logits = self.fc(nn.functional.dropout(self.features(images), 0.5, self.training))
        return logits if aux is None else (logits, aux)


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


def test_what_is_done_in_training_beside_the_features_is_left_out():
    backbone = build_backbone(config("Auxiliary", stages=TWO), None, spec=SPEC)
    net = Auxiliary()
    net.load_state_dict({**net.state_dict(), **{key.split(".", 2)[2]: t for key, t in backbone.state_dict().items()}})
    images = torch.randn(2, 3, 16, 16)
    assert backbone.eval()(images).equal(net.eval().features(images))


def test_parameter_that_two_stages_use_is_told():
    with pytest.raises(UserError, match=r"^--model.backbone.stages: middle and deep cannot be cut apart"):
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


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (config(stages={"stem": "conv1"}), "--model.backbone.stages: parameter scale is in no stage; it must be in"),
        (
            config(stages={**TWO, "more": "conv"}),
            "--model.backbone.stages: more: no parameter fits 'conv'",
        ),
        (
            config(stages={**TWO, "more": "conv1"}),
            "--model.backbone.stages: parameter conv1.weight is in stem and in more; it must be in exactly one",
        ),
        (config(stages=TWO, classifier=None), "--model.backbone.stages: parameter fc.weight is in no stage"),
        (config(stages=TWO, classifer="fc"), "--model.backbone: unknown key 'classifer'; nearest: classifier"),
        ({"class_path": "a.B"}, "--model.backbone: stages is missing; your own network needs class_path and stages"),
        (config(stages=["conv1"]), "--model.backbone.stages: must map names (without dots) to patterns"),
        (config("Nothing", stages=TWO), f"--model.backbone: cannot make {__name__}.Nothing (module"),
        (
            config(init_args={"depth": 1}, stages=TWO),
            f"--model.backbone: cannot make {__name__}.Net (Net.__init__() got",
        ),
        (config(stages=TWO, init_args={"dropout": True}), "--model.backbone: Net does not always do the same between"),
        (
            config("Positional", stages=TWO),
            "--model.backbone: Positional does not always do the same between its stages (see dropout)",
        ),
        (
            config("OnlyInTraining", stages=TWO),
            "--model.backbone: OnlyInTraining does not always do the same between its stages (see conv1)",
        ),
        (
            config("Noisy", stages=TWO),
            "--model.backbone: Noisy does not always do the same between its stages (see add",
        ),
        (config("Writing", stages=TWO), "--model.backbone: cannot follow the images through Writing ('Proxy' object"),
        (config("Listing", stages=TWO), "--model.backbone: cannot follow the images through Listing ("),
        (
            config("Sized", stages={"stem": "conv1|norm1", "middle": r"body\.0", "deep": r"body\.1|scale"}),
            "--model.backbone.stages: stem and middle cannot be cut apart: what follows stem takes more than one "
            "tensor (getitem, conv1); make them one stage",
        ),
        (config("Branching", stages=TWO), "--model.backbone: cannot follow the images through Branching (symbolically"),
        (config("Several", stages=TWO), "--model.backbone: Several gives something else than one tensor"),
        (
            config("Split", stages={"stem": "conv1", "deep": r"body\.0|scale", "rest": r"norm1|body\.1"}),
            "--model.backbone.stages: stem and deep cannot be cut apart: what follows stem takes more "
            "than one tensor (images, conv1); make them one stage",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(given, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        build_backbone(given, None, spec=SPEC)


def test_own_network_has_no_published_weights():
    with pytest.raises(UserError, match=r"^--model.weights: .* has no published weights; give a file, or null"):
        build_backbone(config(stages=TWO), spec=SPEC)


def test_weights_of_an_own_network_come_from_a_file(tmp_path):
    net = Net()
    torch.save({"model": {f"module.{key}": tensor for key, tensor in net.state_dict().items()}}, tmp_path / "net.pt")
    backbone = build_backbone(config(stages=TWO), str(tmp_path / "net.pt"), spec=SPEC)
    images = torch.randn(2, 3, 16, 16)
    assert backbone.eval()(images).equal(net.eval().features(images))


def test_network_that_is_no_chain_is_told():
    timm = pytest.importorskip("timm")
    assert "cait_xxs24_224" in timm.list_models()  # its last blocks take the patches and a class token
    with pytest.raises(UserError, match=r"^--model.backbone: Cait is no chain of stages: more than one tensor goes"):
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
