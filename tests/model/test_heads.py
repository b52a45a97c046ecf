from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_ft.errors import UserError
from lit_ft.model.heads import START_SCALE, HeadConfig, build_head, set_prior_bias
from lit_ft.model.objective import PenaltyConfig, WeightPenalty
from lit_ft.optim.optimizers import build_param_groups


def layers(head):
    return [
        (type(m).__name__, getattr(m, "in_features", None), getattr(m, "out_features", getattr(m, "p", None)))
        for m in head
    ]


def test_default_is_one_linear_layer():
    assert layers(build_head(8, 3, HeadConfig())) == [("Linear", 8, 3)]


def test_hidden_layers_follow_one_another_with_relu_between():
    assert layers(build_head(8, 3, HeadConfig(hidden=[5, 4]))) == [
        ("Linear", 8, 5),
        ("ReLU", None, None),
        ("Linear", 5, 4),
        ("ReLU", None, None),
        ("Linear", 4, 3),
    ]


def test_dropout_stands_before_each_linear_layer():
    head = build_head(8, 3, HeadConfig(hidden=[5], dropout=0.25))
    assert layers(head)[::2] == [("Dropout", None, 0.25), ("ReLU", None, None), ("Linear", 5, 3)]
    assert isinstance(head[3], nn.Dropout)
    assert head[3].p == 0.25


def test_logits_are_those_of_the_formula():
    head = build_head(8, 3, HeadConfig(hidden=[5], dropout=0.5)).eval()
    features = torch.randn(4, 8)
    first, second = head[1], head[4]
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(head(features), hidden @ second.weight.T + second.bias)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dropout": 1.0}, "model.head.dropout: must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "model.head.dropout: must be at least 0 and below 1, got -0.1"),
        ({"hidden": [5, 0]}, r"model.head.hidden: sizes must be at least 1, got \[5, 0\]"),
        ({"kind": "cosin"}, r"model.head.kind: unknown kind 'cosin'; nearest: cosine .*"),
        (
            {"kind": "cosine", "zero_init": True},
            "model.head.zero_init: is for model.head.kind linear, not cosine",
        ),
        (
            {"kind": "cosine", "prior_bias": True},
            "model.head.prior_bias: is for model.head.kind linear, not cosine",
        ),
    ],
)
def test_impossible_head_is_refused(options, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        HeadConfig(**options)


def test_cosine_layer_is_the_last_and_follows_its_formula():
    torch.manual_seed(0)
    head = build_head(8, 3, HeadConfig(hidden=[5], dropout=0.5, kind="cosine")).eval()
    assert layers(head)[-2:] == [("Dropout", None, 0.5), ("CosineLinear", 5, 3)]
    assert {name for name, _ in head[-1].named_parameters()} == {"weight", "scale_bias"}
    nn.init.constant_(head[-1].scale_bias, 2.5)
    features = torch.randn(4, 8)
    hidden = (features @ head[1].weight.T + head[1].bias).clamp(min=0)
    weight = head[-1].weight
    cosines = hidden @ weight.T / hidden.norm(dim=1, keepdim=True) / weight.norm(dim=1)
    torch.testing.assert_close(head(features), (START_SCALE + 2.5) * cosines)


def test_cosine_layer_minds_no_lengths_and_bears_features_of_zeros():
    torch.manual_seed(0)
    head = build_head(8, 3, HeadConfig(kind="cosine"))
    features = torch.randn(4, 8)
    before = head(features)
    assert before.abs().max() < START_SCALE
    with torch.no_grad():
        head[-1].weight[1] *= 7
    torch.testing.assert_close(head(features * torch.tensor([[0.1], [1], [5], [30]])), before)
    torch.testing.assert_close(head(head[-1].weight)[0, 0], torch.tensor(START_SCALE))
    zeros = torch.zeros(2, 8, requires_grad=True)
    logits = head(zeros)
    logits.sum().backward()
    assert not logits.any()
    assert zeros.grad.isfinite().all()


def test_scale_of_cosines_trains_but_neither_decay_nor_penalty_draws_it_to_zero():
    head = build_head(8, 3, HeadConfig(kind="cosine"))
    head(torch.randn(4, 8))[:, 0].sum().backward()
    assert head[-1].scale_bias.grad.abs() > 0
    decay, none = build_param_groups({"head": [head]}, 1.0, 1.0)
    assert "weight_decay" not in decay
    assert decay["params"] == [head[-1].weight]
    assert none["weight_decay"] == 0.0
    assert none["params"][0] is head[-1].scale_bias
    penalty = WeightPenalty(nn.Identity(), PenaltyConfig("l2"))(nn.Identity(), head)
    torch.testing.assert_close(penalty, 0.005 * head[-1].weight.square().sum())


def test_zeros_are_for_the_last_layer_alone():
    head = build_head(8, 3, HeadConfig(hidden=[5], zero_init=True))
    assert not head[-1].weight.any()
    assert not head[-1].bias.any()
    assert head[0].weight.all()
    assert head[0].bias.all()
    assert not head(torch.randn(4, 8)).any()


def counted(*train, **others):
    """A data module that counts its images."""
    return SimpleNamespace(counts=lambda: {"train": list(train), "val": [9] * len(train)}, **others)


def test_first_softmax_is_the_shares_of_the_classes():
    head = build_head(8, 3, HeadConfig(hidden=[5], zero_init=True, prior_bias=True))
    set_prior_bias(head, counted(6, 3, 1))
    torch.testing.assert_close(head(torch.randn(4, 8)).softmax(1), torch.tensor([[0.6, 0.3, 0.1]]).expand(4, 3))
    torch.testing.assert_close(head[-1].bias.exp(), torch.tensor([0.6, 0.3, 0.1]))


def test_class_without_images_counts_as_if_it_had_one():
    head = build_head(8, 3, HeadConfig(prior_bias=True))
    assert head[-1].weight.all()
    set_prior_bias(head, counted(6, 0, 3))
    torch.testing.assert_close(head[-1].bias.exp(), torch.tensor([0.6, 0.1, 0.3]))


def test_shares_are_set_once():
    head = build_head(8, 2, HeadConfig(prior_bias=True))
    set_prior_bias(head, counted(1, 3))
    for other in (counted(3, 1), None):
        set_prior_bias(head, other)
        torch.testing.assert_close(head[-1].bias.exp(), torch.tensor([0.25, 0.75]))


def test_shares_that_nobody_knows_are_asked_for():
    with pytest.raises(
        UserError, match=r"^model.head.prior_bias: the data module has no counts\(\) .*prior_bias to false$"
    ):
        set_prior_bias(build_head(8, 2, HeadConfig(prior_bias=True)), None)


def test_labels_start_at_their_odds():
    head = build_head(8, 3, HeadConfig(zero_init=True, prior_bias=True))
    set_prior_bias(head, counted(5, 0, 20, sizes=lambda: {"train": 20}), "multilabel")
    # of 20 images; a label that none or all have counts as if one had it, or had it not
    assert torch.allclose(head(torch.randn(2, 8)), torch.tensor([5 / 15, 1 / 20, 20 / 1]).log().expand(2, 3))
    with pytest.raises(UserError, match=r"^model.head.prior_bias: the data module has no sizes\(\) "):
        set_prior_bias(build_head(8, 3, HeadConfig(prior_bias=True)), counted(5, 0, 20), "multilabel")
