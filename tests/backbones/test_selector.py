import pytest
import torch
from torch import nn

from lit_ft.backbones.freezing import Staged, trainable_kinds
from lit_ft.backbones.selector import norm_layers, select_parameters


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
