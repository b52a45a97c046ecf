import pytest
import torch
from torch import nn

from lit_ft.errors import UserError
from lit_ft.model.regularisation import PenaltyConfig, WeightPenalty


def networks():
    """A backbone of two layers with the weights 1, 2 and 3, and a head with the weight 4."""
    backbone = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    head = nn.Linear(1, 1, bias=False)
    for value, parameter in enumerate([*backbone.parameters(), *head.parameters()], start=1):
        nn.init.constant_(parameter, value)
    return backbone, head


def add(module, value):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += value


def gradients(*modules):
    return [None if p.grad is None else p.grad.item() for module in modules for p in module.parameters()]


def test_l2_sp_has_value_and_gradient_of_the_formula():
    backbone, head = networks()
    penalty = WeightPenalty(backbone, PenaltyConfig("l2_sp", strength=0.5, head_strength=0.25))
    add(backbone, 3.0)
    value = penalty(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(0.5 / 2 * 3 * 3.0**2 + 0.25 / 2 * 4.0**2)
    assert gradients(backbone, head) == pytest.approx([0.5 * 3.0] * 3 + [0.25 * 4.0])


def test_l2_sp_is_zero_for_the_backbone_at_its_start():
    backbone, head = networks()
    value = WeightPenalty(backbone, PenaltyConfig("l2_sp", 0.5, 0.25))(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(0.25 / 2 * 4.0**2)
    assert gradients(backbone, head) == [0.0, 0.0, 0.0, 1.0]


def test_l2_has_value_and_gradient_of_the_formula():
    backbone, head = networks()
    value = WeightPenalty(backbone, PenaltyConfig("l2", 0.5, 0.25))(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(0.5 / 2 * (1 + 4 + 9) + 0.25 / 2 * 16)
    assert gradients(backbone, head) == pytest.approx([0.5, 1.0, 1.5, 1.0])


@pytest.mark.parametrize(("kind", "expected"), [("l2_sp", 0.5 / 2 * 2.0**2), ("l2", 0.5 / 2 * 5.0**2)])
def test_frozen_weights_are_left_out(kind, expected):
    backbone, head = networks()
    penalty = WeightPenalty(backbone, PenaltyConfig(kind, 0.5, 0.25))
    add(backbone, 2.0)
    backbone[0].requires_grad_(False)
    head.requires_grad_(False)
    value = penalty(backbone, head)
    value.backward()
    assert value.item() == pytest.approx(expected)
    assert gradients(backbone[0], head) == [None, None, None]


def test_start_is_a_copy_that_neither_trains_nor_moves():
    backbone, _ = networks()
    penalty = WeightPenalty(backbone, PenaltyConfig("l2_sp"))
    add(backbone, 5.0)
    assert list(penalty.parameters()) == []
    assert [buffer.item() for buffer in penalty.buffers()] == [1.0, 2.0, 3.0]


def test_state_dict_carries_the_start_to_a_resumed_run():
    backbone, head = networks()
    first = WeightPenalty(backbone, PenaltyConfig("l2_sp", 0.5, 0.0))
    assert set(first.state_dict()) == {"0/weight", "0/bias", "1/weight"}
    add(backbone, 3.0)
    resumed = WeightPenalty(backbone, PenaltyConfig("l2_sp", 0.5, 0.0))
    assert resumed(backbone, head).item() == 0.0
    resumed.load_state_dict(first.state_dict())
    assert resumed(backbone, head).item() == first(backbone, head).item() == pytest.approx(0.5 / 2 * 27)


@pytest.mark.parametrize("kind", ["none", "l2"])
def test_other_kinds_keep_no_start(kind):
    assert WeightPenalty(networks()[0], PenaltyConfig(kind)).state_dict() == {}


@pytest.mark.parametrize("key", ["strength", "head_strength"])
def test_negative_factor_is_refused(key):
    with pytest.raises(UserError, match=f"^model.penalty.{key}: must not be negative, got -1.0$"):
        PenaltyConfig("l2", **{key: -1.0})
