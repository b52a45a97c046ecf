"""Frozen means unchanged: weights, buffers and what a frozen prefix gives, for each family of torchvision."""

import pytest
import torch
import torch.nn.functional as F
from small_runs import digests, filled
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from lit_ft.backbones.backbone import Backbone
from lit_ft.backbones.build import build_backbone
from lit_ft.backbones.freezing import NORMS, Staged, norm_layers, select_parameters, trainable_kinds
from lit_ft.backbones.input_spec import InputSpec
from lit_ft.backbones.partition.meta import without_data
from lit_ft.errors import UserError

WITH_BATCH_NORM = [
    "resnet18",
    "vgg11_bn",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "regnet_y_400mf",
]
WITHOUT = ["squeezenet1_1", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_32"]
RANDOM_PATHS = {"efficientnet_b0", "efficientnet_v2_s", "maxvit_t", "convnext_tiny", "swin_t", "swin_v2_t"}
SIZES = {"inception_v3": 96, "maxvit_t": 224}


class Noisy(nn.Module):
    """Drops activations with a function rather than a module, and counts its calls."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, images):
        if self.training:
            self.calls += 1
        return F.dropout(self.norm(self.conv(images)).relu(), 0.5, self.training)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.mid, self.high = Noisy(3), nn.Sequential(Noisy(8), nn.Dropout2d(0.5)), Noisy(8)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images):
        return self.pool(self.high(self.mid(self.low(images)))).flatten(1)


OWN = {"class_path": f"{__name__}.Mixed", "stages": {"low": "low", "mid": "mid", "high": "high"}}


def frozen_but_the_last(name, frozen_norm="eval"):
    """The backbone in training mode, the names of its frozen stages, the last one, and a batch."""
    size = SIZES.get(str(name), 64)
    spec = InputSpec(size=size, resize=size)
    backbone = filled(without_data(lambda: build_backbone(name, weights=None, spec=spec))).train()
    *frozen, last = backbone.stages
    backbone.set_trainable([last], frozen_norm)
    return backbone, frozen, last, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def train(backbone: Backbone, images, steps=2):
    """Some steps of everything that has a gradient, with a validation between them."""
    optimizer = torch.optim.SGD(backbone.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)
    for step in range(steps):
        loss = backbone(images + step).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        backbone.eval()
        with torch.no_grad():
            backbone(images)
        backbone.train()


@torch.no_grad()
def outputs(backbone, stages, images):
    for name in stages:
        images = backbone.stages[name](images)
    return images


# Takes as long as five of the others, as it has images of 224 pixels.
LARGE = pytest.param("maxvit_t", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [*WITH_BATCH_NORM, LARGE, *WITHOUT, pytest.param(OWN, id="own network")])
def test_frozen_prefix_is_unchanged_by_training(name):
    backbone, frozen, last, images = frozen_but_the_last(name)
    has_batch_norm = name in (*WITH_BATCH_NORM, "maxvit_t", OWN)
    parts = [part for stage in frozen for part in backbone.stages[stage].modules()]
    assert any(isinstance(part, _BatchNorm) for part in parts) == has_batch_norm
    assert any(isinstance(part, StochasticDepth) for part in parts) == (str(name) in RANDOM_PATHS)
    before = digests(backbone)
    expected = outputs(backbone.eval(), frozen, images)
    train(backbone.train(), images)
    after = digests(backbone)
    assert {stage: after[stage] for stage in frozen} == {stage: before[stage] for stage in frozen}
    assert after[last][0] != before[last][0]
    assert (after[last][1] != before[last][1]) == has_batch_norm
    # In training mode, too, neither dropout nor stochastic depth nor the statistics of the batch act.
    assert backbone.training
    assert outputs(backbone, frozen, images).equal(expected)


@pytest.mark.parametrize("name", ["efficientnet_b0", "swin_t", pytest.param(OWN, id="own network")])
def test_unfrozen_stages_are_random_again(name):
    backbone, frozen, _, images = frozen_but_the_last(name)
    backbone.set_trainable(list(backbone.stages))
    torch.manual_seed(1)
    first, second = (outputs(backbone, frozen, images) for _ in range(2))
    assert not first.equal(second)


@pytest.mark.parametrize("name", ["mnasnet0_5", pytest.param(OWN, id="own network")])
@pytest.mark.parametrize("frozen_norm", ["stats", "train"])
def test_norm_layers_alone_may_change_when_the_option_says_so(name, frozen_norm):
    backbone, frozen, _, images = frozen_but_the_last(name, frozen_norm)
    stages = nn.ModuleList([backbone.stages[stage] for stage in frozen])
    norms = {
        f"{path}.{key}" for path, part in stages.named_modules() if isinstance(part, NORMS) for key in part._parameters
    }
    before = {key: tensor.clone() for key, tensor in stages.state_dict().items()}
    train(backbone, images)
    moved = {key for key, tensor in stages.state_dict().items() if not tensor.equal(before[key])}
    counted = {key for key, _ in stages.named_buffers() if key.endswith(("running_mean", "running_var", "tracked"))}
    assert moved == counted | (norms if frozen_norm == "train" else set())
    # One batch has one set of statistics, so that all that could differ is what dropout and stochastic depth draw.
    assert outputs(backbone, frozen, images).equal(outputs(backbone, frozen, images))


def test_stage_that_is_frozen_again_is_not_moved_by_what_the_optimizer_remembers():
    backbone, frozen, last, images = frozen_but_the_last("resnet18")
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    backbone.set_trainable(list(backbone.stages))
    backbone(images).mean().backward()
    optimizer.step()
    backbone.set_trainable([last])
    before = digests(backbone)
    backbone(images).mean().backward()
    optimizer.step()
    after = digests(backbone)
    assert {stage for stage in after if after[stage] != before[stage]} == {last}
    assert frozen


class Scaled(nn.Module):
    """A scale and a class token, which are neither weights nor biases, beside a layer that multiplies."""

    def __init__(self):
        super().__init__()
        self.scale_weight = nn.Parameter(torch.ones(3))
        self.token = nn.Parameter(torch.ones(1, 1, 3))
        self.relative_position_bias_table = nn.Parameter(torch.ones(5, 3))
        self.inner = nn.Linear(3, 2)


@pytest.fixture
def stages():
    torch.manual_seed(0)
    return {
        "stem": [nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.LayerNorm((2, 3))],
        "body": [Scaled()],
        "head": [nn.Linear(2, 2, bias=False)],
    }


def names(stages, kinds):
    """The selected parameters of each stage by their names."""
    found = select_parameters(stages, kinds)
    own = {
        id(p): f"{i}.{n}"
        for parts in stages.values()
        for i, part in enumerate(parts)
        for n, p in part.named_parameters()
    }
    return {stage: [own[id(parameter)] for parameter in selected] for stage, selected in found.items()}


@pytest.mark.parametrize(
    ("kind", "stem", "body", "head"),
    [
        (
            "all",
            ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight", "1.bias"],
            ["0.scale_weight", "0.token", "0.relative_position_bias_table", "0.inner.weight", "0.inner.bias"],
            ["0.weight"],
        ),
        ("norms", ["0.1.weight", "0.1.bias", "1.weight", "1.bias"], [], []),
        ("biases", ["0.0.bias", "0.1.bias", "1.bias"], ["0.inner.bias"], []),
        ("weights", ["0.0.weight"], ["0.inner.weight"], ["0.weight"]),
    ],
)
def test_parameters_of_a_kind(stages, kind, stem, body, head):
    expected = {"stem": stem, "body": body, "head": head}
    assert names(stages, dict.fromkeys(stages, kind)) == expected
    for stage in stages:
        assert names(stages, {stage: kind}) == {stage: expected[stage]}


def test_stages_are_in_their_order_whatever_that_of_the_kinds(stages):
    assert list(select_parameters(stages, {"head": "all", "stem": "norms"})) == ["stem", "head"]
    assert select_parameters(stages, {}) == {}


def test_shared_parameter_is_selected_once():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    selected = select_parameters({"head": [first, second]}, {"head": "all"})["head"]
    assert [id(p) for p in selected] == [id(first.weight), id(first.bias), id(second.bias)]


def test_parameter_within_a_norm_layer_counts_to_it():
    class Activated(nn.LayerNorm):
        def __init__(self):
            super().__init__(3)
            self.activation = nn.PReLU()

    norm = Activated()
    assert norm_layers([nn.Sequential(norm)]) == [norm]
    assert len(select_parameters({"stem": [norm]}, {"stem": "norms"})["stem"]) == 3


@pytest.mark.parametrize(
    ("trainable", "frozen_norm", "expected"),
    [
        (["head"], "eval", {"head": "all"}),
        (["head"], "stats", {"head": "all"}),
        (["head"], "train", {"stem": "norms", "body": "norms", "head": "all"}),
        (["body", "head"], "train", {"stem": "norms", "body": "all", "head": "all"}),
        ([], "eval", {}),
    ],
)
def test_kinds_that_train(trainable, frozen_norm, expected):
    assert trainable_kinds(["stem", "body", "head"], trainable, frozen_norm) == expected


@pytest.mark.parametrize("frozen_norm", ["eval", "stats", "train"])
def test_what_is_selected_is_what_trains(stages, frozen_norm):
    class Network(Staged, nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(part for parts in stages.values() for part in parts)

        def stage_modules(self):
            return stages

    network = Network()
    network.set_trainable(["head"], frozen_norm)
    selected = network.trainable_parameters(["head"], frozen_norm)
    assert {id(p) for p in network.parameters() if p.requires_grad} == {id(p) for p in selected}
    assert len(selected) == {"eval": 1, "stats": 1, "train": 5}[frozen_norm]


@pytest.mark.parametrize("norm", ["train", "eval"])
def test_batch_norm_of_a_new_head_follows_the_batches(norm):
    parts = {"body": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "head": nn.BatchNorm1d(4)}

    class Network(Staged, nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict(parts)

        def stage_modules(self):
            return {name: [part] for name, part in self.parts.items()}

    network = Network()
    network.set_trainable(["body", "head"], norm=norm)
    network.train()
    assert [layer.training for layer in norm_layers([network])] == [norm == "train", True]
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_stages_that_are_mixed_in_behind_a_module_are_refused():
    class Own(nn.Module):
        """As of a user's."""

    with pytest.raises(UserError, match=r"^Wrong: name Staged before Own in its bases"):

        class Wrong(Own, Staged):
            """Its `train` would be that of `nn.Module`."""

    class Right(Own):
        """Inherits nothing of stages."""

    class OfBoth(Staged, Right):
        """Has that of `Staged`."""

    assert OfBoth.train is Staged.train
