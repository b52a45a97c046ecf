import copy
import warnings
from collections import Counter

import pytest
import torch
from parameter_rates import two_groups
from torch import nn
from torch.optim import Adam, AdamW

from lit_ft.backbones.build import build_backbone
from lit_ft.backbones.partition.meta import without_data
from lit_ft.errors import UserError
from lit_ft.model.heads import HeadConfig, build_head
from lit_ft.optim import WarmupCosine
from lit_ft.optim.optimizers import build_optimizer, build_param_groups
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.schedules import build_scheduler

TEN = RunLength(max_steps=10)


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


class Steps:
    """Steps of a small network, with an optimizer of four groups, and what is seen of these within a step."""

    def __init__(self, spec, fused=True):
        torch.manual_seed(0)
        self.parts = {"conv": [nn.Linear(3, 4)], "head": [nn.Linear(4, 2)]}
        self.optimizer = build_optimizer(spec, build_param_groups(self.parts, 0.1, 1.0), 0.1, fused)
        self.num_in_closure, self.num_in_step, self.scheduler = set(), [], WarmupCosine(self.optimizer, 10)
        self.optimizer.register_step_pre_hook(lambda *_: self.num_in_step.append(len(self.optimizer.param_groups)))

    def closure(self):
        self.optimizer.zero_grad()
        loss = self.parts["head"][0](self.parts["conv"][0](torch.ones(2, 3))).square().sum()
        loss.backward()
        self.num_in_closure.add(len(self.optimizer.param_groups))
        return loss

    def run(self, num):
        losses = []
        for _ in range(num):
            losses.append(float(self.optimizer.step(self.closure)))
            self.scheduler.step()
        return losses


@pytest.mark.parametrize(
    ("spec", "num"),
    [("AdamW", 2), ({"class_path": "AdamW", "init_args": {"weight_decay": 0.0}}, 1), ("SGD", 1), ("Adagrad", 1)],
)
def test_groups_of_equal_options_step_together_and_stay_apart_for_all_else(spec, num):
    together, apart = Steps(spec), Steps(spec)
    del apart.optimizer.step  # that of the instance, and with it torch's note that it was called
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert together.run(4) == apart.run(4)
    assert together.num_in_step == [num] * 4
    assert apart.num_in_step == [4] * 4
    assert together.num_in_closure == {4}
    assert [group["name"] for group in together.optimizer.param_groups] == [
        "head",
        "head/no_decay",
        "conv",
        "conv/no_decay",
    ]
    found, expected = (steps.optimizer.state_dict() for steps in (together, apart))
    assert found["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(found["state"], expected["state"], rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["AdamW", {"class_path": "SGD", "init_args": {"momentum": 0.9}}])
def test_groups_that_are_unfrozen_step_as_if_they_were_apart(spec):
    together, apart = Steps(spec), Steps(spec)
    del apart.optimizer.step
    for steps in (together, apart):
        steps.parts["conv"][0].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for is_trained in (False, True):
            for steps in (together, apart):
                steps.parts["conv"][0].requires_grad_(is_trained)
            assert together.run(2) == apart.run(2)
    found, expected = (steps.optimizer.state_dict()["state"] for steps in (together, apart))
    assert len(found) == 4
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_group_of_which_a_part_is_unfrozen_steps_as_if_it_were_apart():
    norm, linear = nn.BatchNorm1d(4), nn.Linear(3, 4)
    found = []
    for fused in (True, False):
        parts = {"conv": [copy.deepcopy(linear), copy.deepcopy(norm)], "head": [nn.Identity()]}
        groups = build_param_groups(parts, 0.1, 1.0)
        optimizer = build_optimizer({"class_path": "SGD", "init_args": {"momentum": 0.9}}, groups, 0.1, fused)
        for is_trained in (False, True, True):
            parts["conv"][0].requires_grad_(is_trained)  # as `frozen_norm: train` leaves it
            optimizer.zero_grad()
            parts["conv"][1](parts["conv"][0](torch.eye(3))).pow(3).sum().backward()
            optimizer.step()
        found.append([parameter for group in optimizer.param_groups for parameter in group["params"]])
    assert len(found[0]) == 4
    assert not found[0][1].equal(linear.bias)
    torch.testing.assert_close(*found)


def test_groups_of_other_rates_step_apart_and_a_failed_step_leaves_all():
    steps = Steps("AdamW")
    steps.optimizer.param_groups[0]["lr"] = 0.3
    steps.run(1)
    assert steps.num_in_step == [3]

    def fail(*_):
        raise RuntimeError("lost")

    steps.optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="lost"):
        steps.optimizer.step()
    assert [group["name"] for group in steps.optimizer.param_groups][2:] == ["conv", "conv/no_decay"]


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


@pytest.fixture(scope="module", params=["mnist_cnn", "resnet18", "convnext_tiny", "vit_b_32"])
def stages(request):
    with torch.device("meta"):
        backbone = build_backbone(request.param, weights=None)
        head = build_head(backbone.num_features, 3, HeadConfig(hidden=[5]))
    return {**backbone.stage_modules(), "head": [head]}


def test_every_parameter_is_in_exactly_one_group(stages):
    counts = Counter(id(p) for group in build_param_groups(stages, 1.0, 0.5) for p in group["params"])
    expected = {id(p) for modules in stages.values() for module in modules for p in module.parameters()}
    assert set(counts) == expected
    assert set(counts.values()) == {1}


def test_groups_hold_their_own_stage_head_first(stages):
    groups = build_param_groups(stages, 1.0, 0.5)
    for group in groups:
        own = {id(p) for module in stages[group["stage"]] for p in module.parameters()}
        assert {id(p) for p in group["params"]} <= own
        assert group["name"] == group["stage"] + ("/no_decay" if "weight_decay" in group else "")
    assert list(dict.fromkeys(group["stage"] for group in groups)) == [*reversed(stages)]
    assert len({group["name"] for group in groups}) == len(groups)


def test_rate_decays_with_depth(stages):
    depths = {stage: depth for depth, stage in enumerate(reversed(stages))}
    for group in build_param_groups(stages, 0.2, 0.5):
        assert group["lr"] == pytest.approx(0.2 * 0.5 ** depths[group["stage"]])
    assert {group["lr"] for group in build_param_groups(stages, 0.2, 1.0)} == {0.2}


def test_backbone_has_a_rate_of_its_own():
    stages = {name: [nn.Linear(2, 2)] for name in ("stem", "body", "head")}
    groups = build_param_groups(stages, 1.0, 0.5, lr_backbone=0.01)
    assert {group["stage"]: group["lr"] for group in groups} == {"head": 1.0, "body": 0.01, "stem": 0.005}


def test_norms_and_biases_have_no_weight_decay(stages):
    # In these networks all other parameters but scales, tokens and position embeddings have more than one dimension.
    for group in build_param_groups(stages, 1.0, 1.0):
        assert "weight_decay" in group or {p.ndim > 1 for p in group["params"]} == {True}
        assert group.get("weight_decay", 0.0) == 0.0


@pytest.mark.parametrize(
    ("network", "few", "num_weights"),
    [
        # 18 blocks of three layers, four convolutions between the stages; the classifier is not there.
        ("convnext_tiny", {"layer_scale": (96, 1, 1)}, 18 * 3 + 4),
        # 12 blocks of two projections of attention and two layers, and the patches.
        ("vit_b_32", {"class_token": (1, 1, 768), "pos_embedding": (1, 50, 768)}, 12 * 4 + 1),
        # The same, and three layers that merge patches.
        ("swin_t", {"relative_position_bias_table": (169, 3)}, 12 * 4 + 1 + 3),
    ],
)
def test_scales_tokens_and_positions_do_not_decay_and_all_weights_do(network, few, num_weights):
    backbone = without_data(lambda: build_backbone(network, weights=None))
    groups = build_param_groups(backbone.stage_modules(), 1.0, 1.0)
    decays = {id(p): "weight_decay" not in group for group in groups for p in group["params"]}
    names = {name: p for name, p in backbone.named_parameters() if decays[id(p)]}
    assert len(names) == num_weights
    assert all(name.endswith("weight") for name in names)
    for ending, shape in few.items():
        found = [p for name, p in backbone.named_parameters() if name.endswith(ending)]
        assert tuple(found[0].shape) == shape
        assert not any(decays[id(p)] for p in found)


def test_weight_of_one_output_decays_and_a_vector_does_not():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.weights_of_channels = nn.Parameter(torch.ones(3))

    layer = Scaled()
    decay, none = build_param_groups({"head": [layer]}, 1.0, 1.0)
    assert [id(p) for p in decay["params"]] == [id(layer.weight)]
    assert {id(p) for p in none["params"]} == {id(layer.bias), id(layer.weights_of_channels)}


def test_weights_of_norms_over_several_axes_do_not_decay():
    groups = build_param_groups({"head": [nn.LayerNorm((2, 3))]}, 1.0, 1.0)
    assert [group["name"] for group in groups] == ["head/no_decay"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("Adm", "there is no class 'Adm'"),
        ("adam", "there is no class 'adam'"),
        ("lr_scheduler", "there is no class 'lr_scheduler'"),
        ("torch.optim.Adm", "there is no class 'torch.optim.Adm'"),
        ("troch.optim.Adam", r"cannot import 'troch.optim.Adam' \(No module named 'troch'\)"),
    ],
)
def test_class_that_does_not_exist_is_refused(path, text):
    with pytest.raises(UserError, match=f"^optimizer: {text}$"):
        build_optimizer(path, [], lr=1.0)
    with pytest.raises(UserError, match=f"^lr_scheduler: {text}$"):
        build_scheduler(path, two_groups(), TEN)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("AdamW", {"betas": [2.0, 0.9]}, "optimizer: AdamW: Invalid beta parameter at index 0: 2.0"),
        ("SGD", {"momntum": 0.9}, "optimizer: SGD: .* unexpected keyword argument 'momntum'"),
        ("LBFGS", {}, "optimizer: LBFGS: .* per-parameter options"),
        ("SGD", {"lr": 0.3}, "optimizer.lr: is given as model.lr, the rate of the head; leave 0.3 out here"),
    ],
)
def test_options_that_an_optimizer_refuses_are_named(name, options, text):
    groups = build_param_groups({"head": [nn.Linear(2, 2)]}, 0.1, 1.0)
    with pytest.raises(UserError, match=f"^{text}"):
        build_optimizer({"class_path": name, "init_args": options}, groups, lr=0.1)


class FaultyOptimizer(AdamW):
    def __init__(self, params, lr):
        raise ValueError("no table of mine")


def test_fault_in_the_code_of_an_own_optimizer_keeps_its_traceback():
    path = f"{FaultyOptimizer.__module__}.FaultyOptimizer"
    with pytest.raises(ValueError, match="no table of mine"):
        build_optimizer(path, build_param_groups({"head": [nn.Linear(2, 2)]}, 0.1, 1.0), lr=0.1)


@pytest.mark.parametrize("path", ["subprocess.Popen", "torch.nn.Linear", "builtins.dict", "ReduceLROnPlateau", "SGD"])
def test_class_of_another_kind_is_refused_before_it_is_called(path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("called"))
    if path != "SGD":
        with pytest.raises(UserError, match=f"^optimizer: '{path}' is no class derived from Optimizer$"):
            build_optimizer(path, [], lr=1.0)
    if path != "ReduceLROnPlateau":
        with pytest.raises(UserError, match=f"^lr_scheduler: '{path}' is no class derived from LRScheduler$"):
            build_scheduler({"class_path": path, "init_args": {}}, two_groups(), TEN)
