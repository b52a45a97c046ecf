import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

from lit_ft.optim.optimizers import build_optimizer


@pytest.mark.parametrize(
    ("spec", "expected", "beta"),
    [
        ("AdamW", AdamW, 0.9),
        ("torch.optim.Adam", Adam, 0.9),
        ({"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.5, 0.9]}}, AdamW, 0.5),
        ({"class_path": "Adam", "init_args": None}, Adam, 0.9),
    ],
)
def test_optimizer_is_the_one_named_with_the_rates_of_the_groups(spec, expected, beta):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}, {"params": [nn.Parameter(torch.zeros(1))]}]
    optimizer = build_optimizer(spec, groups, lr=0.25)
    assert type(optimizer) is expected
    assert [(group["lr"], group["betas"][0]) for group in optimizer.param_groups] == [(0.5, beta), (0.25, beta)]


@pytest.mark.parametrize(
    ("spec", "options", "expected"),
    [
        ("AdamW", {}, True),
        ("SGD", {}, True),
        # As the command line writes out an optimizer's options.
        ("AdamW", {"fused": None, "foreach": None, "capturable": False, "differentiable": False}, True),
        ("AdamW", {"fused": False}, False),
        ("AdamW", {"foreach": True}, None),
        ("AdamW", {"differentiable": True}, None),
        ("NAdam", {}, "no such form"),
    ],
)
def test_optimizer_is_fused_where_it_can_be_and_no_option_chooses_otherwise(spec, options, expected):
    groups = [{"params": [nn.Parameter(torch.ones(3))]}, {"params": [nn.Parameter(torch.ones(2))]}]
    built = build_optimizer({"class_path": spec, "init_args": options}, groups, lr=0.5)
    assert [group.get("fused", "no such form") for group in built.param_groups] == [expected] * 2


def test_optimizer_is_not_fused_where_it_may_not_or_the_device_has_no_such_form():
    with torch.device("meta"):
        elsewhere = nn.Linear(2, 2)
    assert build_optimizer("AdamW", [{"params": list(elsewhere.parameters())}], 0.1).param_groups[0]["fused"] is None
    here = [{"params": [nn.Parameter(torch.ones(3))]}]
    assert build_optimizer("AdamW", here, 0.1, fused=False).param_groups[0]["fused"] is None


@pytest.mark.parametrize(
    ("dtype", "options", "expected"),
    [
        (torch.float32, {}, 1e-8),
        (torch.bfloat16, {}, 1e-8),
        (torch.float16, {}, torch.finfo(torch.float16).tiny),
        (torch.float16, {"eps": 1e-3}, 1e-3),
    ],
)
def test_division_by_zero_is_kept_off_in_the_type_of_the_weights(dtype, options, expected):
    weight = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = build_optimizer({"class_path": "AdamW", "init_args": options}, [{"params": [weight]}], lr=0.5)
    assert optimizer.param_groups[0]["eps"] == expected
    weight.grad = torch.tensor([0.0, 1e-4, 1.0], dtype=dtype)
    optimizer.step()
    assert weight.isfinite().all()
