import pytest
import torch
from torch import nn

from lit_ft.errors import UserError
from lit_ft.heads import HeadConfig, build_head


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
    ("config", "text"),
    [
        (HeadConfig(dropout=1.0), "--model.head.dropout: must be at least 0 and below 1, got 1.0"),
        (HeadConfig(dropout=-0.1), "--model.head.dropout: must be at least 0 and below 1, got -0.1"),
        (HeadConfig(hidden=[5, 0]), r"--model.head.hidden: sizes must be at least 1, got \[5, 0\]"),
    ],
)
def test_impossible_head_is_refused(config, text):
    with pytest.raises(UserError, match=f"^{text}$"):
        build_head(8, 3, config)
