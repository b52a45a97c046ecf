from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, lr_scheduler

from lit_ft.backbones.build import build_backbone
from lit_ft.backbones.partition.meta import without_data
from lit_ft.errors import UserError
from lit_ft.model.heads import HeadConfig, build_head
from lit_ft.optim.optimizers import WarmupCosine, build_optimizer, build_scheduler, param_groups, settle_plateau
from lit_ft.optim.run_length import RunLength

TEN = RunLength(max_steps=10)


def two_groups(lrs=(1.0, 0.1)):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return SGD(groups, lr=9.0, momentum=0.9)


def rates(optimizer, scheduler, steps):
    """The learning rates of all groups at each of the steps."""
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
    return seen


@pytest.fixture(scope="module", params=["mnist_cnn", "resnet18", "convnext_tiny", "vit_b_32"])
def stages(request):
    with torch.device("meta"):
        backbone = build_backbone(request.param, weights=None)
        head = build_head(backbone.num_features, 3, HeadConfig(hidden=[5]))
    return {**backbone.stage_modules(), "head": [head]}


def test_every_parameter_is_in_exactly_one_group(stages):
    counts = Counter(id(p) for group in param_groups(stages, 1.0, 0.5) for p in group["params"])
    expected = {id(p) for modules in stages.values() for module in modules for p in module.parameters()}
    assert set(counts) == expected
    assert set(counts.values()) == {1}


def test_groups_hold_their_own_stage_head_first(stages):
    groups = param_groups(stages, 1.0, 0.5)
    for group in groups:
        own = {id(p) for module in stages[group["stage"]] for p in module.parameters()}
        assert {id(p) for p in group["params"]} <= own
        assert group["name"] == group["stage"] + ("/no_decay" if "weight_decay" in group else "")
    assert list(dict.fromkeys(group["stage"] for group in groups)) == [*reversed(stages)]
    assert len({group["name"] for group in groups}) == len(groups)


def test_rate_decays_with_depth(stages):
    depths = {stage: depth for depth, stage in enumerate(reversed(stages))}
    for group in param_groups(stages, 0.2, 0.5):
        assert group["lr"] == pytest.approx(0.2 * 0.5 ** depths[group["stage"]])
    assert {group["lr"] for group in param_groups(stages, 0.2, 1.0)} == {0.2}


def test_norms_and_biases_have_no_weight_decay(stages):
    # In these networks all other parameters but scales, tokens and position embeddings have more than one dimension.
    for group in param_groups(stages, 1.0, 1.0):
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
    groups = param_groups(backbone.stage_modules(), 1.0, 1.0)
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
    decay, none = param_groups({"head": [layer]}, 1.0, 1.0)
    assert [id(p) for p in decay["params"]] == [id(layer.weight)]
    assert {id(p) for p in none["params"]} == {id(layer.bias), id(layer.weights_of_channels)}


def test_weights_of_norms_over_several_axes_do_not_decay():
    groups = param_groups({"head": [nn.LayerNorm((2, 3))]}, 1.0, 1.0)
    assert [group["name"] for group in groups] == ["head/no_decay"]


@pytest.mark.parametrize(
    ("options", "unfreeze_epoch", "expected"),
    [
        ({}, None, {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.85355, 6: 0.5, 8: 0.14645, 10: 0.0, 11: 0.0}),
        ({}, 5, {0: 0.0, 3: 0.0, 4: 0.0, 5: 0.5 * 0.69134, 6: 0.5, 8: 0.14645, 10: 0.0}),
        ({"warmup_fraction": 0.0}, None, {0: 1.0, 5: 0.5, 10: 0.0}),
        ({"warmup_fraction": 0.0}, 3, {2: 0.0, 3: 0.79389, 5: 0.5}),
        ({"final_fraction": 0.2}, None, {0: 0.5, 2: 1.0, 6: 0.6, 10: 0.2}),
        ({"warmup_fraction": 0.11}, None, {0: 0.5, 1: 1.0}),  # 1.1 steps are rounded up to 2
    ],
)
def test_warmup_cosine_has_the_values_of_the_formula(options, unfreeze_epoch, expected):
    optimizer = two_groups()
    scheduler = WarmupCosine(optimizer, **{"total_steps": 10, "warmup_fraction": 0.2, **options})
    if unfreeze_epoch is not None:
        # The trainer sets it after the scheduler was made; what is thawed at step 0 has its rate from the start.
        for group in optimizer.param_groups:
            group.update(unfreeze_epoch=unfreeze_epoch, lr=0.0)
    seen = rates(optimizer, scheduler, 12)
    for step, factor in expected.items():
        assert seen[step] == pytest.approx([factor, 0.1 * factor], abs=1e-5)


def test_warmup_cosine_warms_up_each_group_from_its_own_thaw():
    optimizer = two_groups((1.0, 1.0))
    scheduler = WarmupCosine(optimizer, total_steps=10, warmup_fraction=0.2)
    optimizer.param_groups[1]["unfreeze_epoch"] = 5
    seen = rates(optimizer, scheduler, 8)
    assert seen[4] == pytest.approx([0.85355, 0.0], abs=1e-5)
    assert seen[5] == pytest.approx([0.69134, 0.34567], abs=1e-5)
    assert seen[6] == pytest.approx([0.5, 0.5])  # both are on the same cosine


def test_warmup_cosine_goes_on_from_its_state(tmp_path):
    whole, first, second = two_groups(), two_groups(), two_groups()
    expected = rates(whole, WarmupCosine(whole, 10), 10)
    begun = WarmupCosine(first, 10)
    rates(first, begun, 4)
    torch.save([begun.state_dict(), first.state_dict()], tmp_path / "state")
    states = torch.load(tmp_path / "state", weights_only=True)
    resumed = WarmupCosine(second, 10)
    resumed.load_state_dict(states[0])
    second.load_state_dict(states[1])
    assert rates(second, resumed, 6) == expected[4:]


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_warmup_out_of_range_is_refused(fraction):
    text = f"^lr_scheduler.warmup_fraction: must be at least 0 and below 1, got {fraction}$"
    with pytest.raises(UserError, match=text):
        WarmupCosine(two_groups(), 10, warmup_fraction=fraction)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("StepLR", {"step_size": 3}),
        ("MultiStepLR", {"milestones": [2, 5]}),
        ("ConstantLR", {"factor": 0.5, "total_iters": 2}),
        ("LinearLR", {"total_iters": 4}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("PolynomialLR", {"total_iters": 6, "power": 2.0}),
        ("CosineAnnealingLR", {"T_max": 8}),
        ("CosineAnnealingWarmRestarts", {"T_0": 3}),
        ("ReduceLROnPlateau", {"patience": 1}),
    ],
)
def test_torch_scheduler_steps_each_epoch_with_its_own_rates(name, options):
    theirs, ours = two_groups(), two_groups()
    expected = rates(theirs, getattr(lr_scheduler, name)(theirs, **options), 10)
    assert len({tuple(pair) for pair in expected}) > 1
    spec = {"class_path": f"torch.optim.lr_scheduler.{name}", "init_args": options}
    scheduler, interval = build_scheduler(spec, ours, RunLength())
    assert interval == "epoch"
    assert rates(ours, scheduler, 10) == expected


def test_one_cycle_rises_to_the_rate_of_each_group():
    optimizer = two_groups()
    scheduler, interval = build_scheduler("OneCycleLR", optimizer, TEN)
    assert interval == "step"
    seen = rates(optimizer, scheduler, 9)
    assert seen[0] == pytest.approx([1 / 25, 0.1 / 25])
    assert [max(column) for column in zip(*seen, strict=True)] == pytest.approx([1.0, 0.1])


def test_cycle_is_below_the_rate_of_each_group():
    optimizer = two_groups()
    scheduler, interval = build_scheduler({"class_path": "CyclicLR", "init_args": {"step_size_up": 2}}, optimizer, TEN)
    assert interval == "step"
    assert rates(optimizer, scheduler, 4) == [pytest.approx([f, 0.1 * f]) for f in (0.25, 0.625, 1.0, 0.625)]
    given = {"base_lr": 0.5, "max_lr": [2.0, 3.0], "step_size_up": 2}
    optimizer = two_groups()
    scheduler, _ = build_scheduler({"class_path": "CyclicLR", "init_args": given}, optimizer, RunLength())
    assert rates(optimizer, scheduler, 3)[::2] == [[0.5, 0.5], [2.0, 3.0]]


def test_list_that_holds_one_scheduler_of_steps_steps_each_step():
    for name, milestones in (("ChainedScheduler", {}), ("SequentialLR", {"milestones": [4]})):
        for last, expected in (
            ("OneCycleLR", "step"),
            ({"class_path": "ExponentialLR", "init_args": {"gamma": 0.5}}, "epoch"),
        ):
            spec = {"class_path": name, "init_args": {"schedulers": ["ConstantLR", last], **milestones}}
            assert build_scheduler(spec, two_groups(), TEN)[1] == expected


def test_one_of_a_list_lasts_until_the_next_and_has_the_rate_of_each_group():
    parts = ["LinearLR", "WarmupCosine", "LinearLR", "OneCycleLR"]
    spec = {"class_path": "SequentialLR", "init_args": {"schedulers": parts, "milestones": [3, 8, 9]}}
    scheduler, _ = build_scheduler(spec, two_groups(), RunLength(max_steps=20))
    _, cosine, _, cycle = scheduler._schedulers
    assert (cosine.first_step, cosine.total_steps, cycle.total_steps) == (3, 5, 11)
    assert [group["max_lr"] for group in scheduler.optimizer.param_groups] == [1.0, 0.1]
    # What is saved with the model stays as it was given.
    assert spec["init_args"]["schedulers"] == ["LinearLR", "WarmupCosine", "LinearLR", "OneCycleLR"]


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"class_path": "CyclicLR"}, "CyclicLR: optimizer must support momentum or beta1 with `cycle_momentum` option"),
        ({"class_path": "OneCycleLR"}, "OneCycleLR: optimizer must support momentum or beta1"),
        ({"class_path": "StepLR"}, r"StepLR: .*missing 1 required positional argument: 'step_size'"),
        ({"class_path": "StepLR", "init_args": {"stepsize": 2}}, r"StepLR: .*unexpected keyword argument 'stepsize'"),
        ({"class_path": "ChainedScheduler"}, "ChainedScheduler: .*missing 1 required positional argument"),
        (
            {"class_path": "ChainedScheduler", "init_args": {"schedulers": ["ReduceLROnPlateau"]}},
            "ChainedScheduler: .* does not support `ReduceLROnPlateau`",
        ),
        (
            {"class_path": "SequentialLR", "init_args": {"schedulers": ["ConstantLR"] * 3, "milestones": [1]}},
            "SequentialLR: .*number of schedulers 3 and the number of milestones to be equal to 1",
        ),
        ({"class_path": "LambdaLR", "init_args": {"lr_lambda": "math.nix"}}, "there is no function 'math.nix'"),
        ({"class_path": "LambdaLR", "init_args": {"lr_lambda": "math.pi"}}, "there is no function 'math.pi'"),
        ({"class_path": "LambdaLR", "init_args": {"lr_lambda": "nix.f"}}, r"cannot import 'nix.f' \(No module .*\)"),
    ],
)
def test_what_a_scheduler_refuses_is_told_in_one_line(spec, text):
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))], lr=1.0)  # without momentum
    with pytest.raises(UserError, match=f"^lr_scheduler: {text}") as caught:
        build_scheduler(spec, optimizer, TEN)
    assert "\n" not in str(caught.value)


def test_given_options_of_a_scheduler_go_before_those_of_the_run():
    spec = {"class_path": "OneCycleLR", "init_args": {"max_lr": 5.0, "total_steps": 20}}
    scheduler, _ = build_scheduler(spec, two_groups(), TEN)
    assert [group["max_lr"] for group in scheduler.optimizer.param_groups] == [5.0, 5.0]
    assert scheduler.total_steps == 20


def test_own_scheduler_gets_the_length_of_the_run():
    scheduler, interval = build_scheduler("WarmupCosine", two_groups(), RunLength(epoch_steps=8, max_epochs=5))
    assert (type(scheduler), interval) == (WarmupCosine, "step")
    assert (scheduler.total_steps, scheduler.warmup_steps) == (40, 2)


@pytest.mark.parametrize("name", ["OneCycleLR", "WarmupCosine"])
def test_scheduler_that_must_know_the_end_is_refused_without_one(name):
    with pytest.raises(UserError, match=f"^lr_scheduler: {name} needs a run with an end; set trainer.max_epochs$"):
        build_scheduler(name, two_groups(), RunLength(epoch_steps=8))


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


@pytest.mark.parametrize("path", ["subprocess.Popen", "torch.nn.Linear", "builtins.dict", "ReduceLROnPlateau", "SGD"])
def test_class_of_another_kind_is_refused_before_it_is_called(path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("called"))
    if path != "SGD":
        with pytest.raises(UserError, match=f"^optimizer: '{path}' is no class derived from Optimizer$"):
            build_optimizer(path, [], lr=1.0)
    if path != "ReduceLROnPlateau":
        with pytest.raises(UserError, match=f"^lr_scheduler: '{path}' is no class derived from LRScheduler$"):
            build_scheduler({"class_path": path, "init_args": {}}, two_groups(), TEN)


def test_resumed_cosine_takes_up_its_position_and_keeps_its_own_length():
    def made(total_steps):
        return WarmupCosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), total_steps, warmup_fraction=0.0)

    short, longer = made(10), made(20)
    short.last_epoch = 10
    longer.load_state_dict(short.state_dict())
    assert longer.last_epoch == 10
    assert longer.factor(10) == pytest.approx(0.5)


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
    ("spec", "monitor", "mode"),
    [
        ("ReduceLROnPlateau", "val/loss", "min"),
        ({"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/acc"}}, "val/acc", "max"),
        ({"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/acc", "mode": "min"}}, "val/acc", "max"),
        (
            {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/acc"}},
            "val/acc",
            "max",
        ),
        ({"class_path": f"{__name__}.OwnPlateau", "init_args": {"monitor": "val/acc", "floor": 3}}, "val/acc", "max"),
    ],
)
def test_plateau_waits_for_what_is_best_of_its_metric(spec, monitor, mode):
    settled, found = settle_plateau(spec, {"val/acc": "max", "val/loss": "min"}, known=True)
    scheduler, _ = build_scheduler(settled, two_groups(), TEN)
    assert (found, scheduler.mode) == (monitor, mode)
    assert getattr(scheduler, "floor", 3) == 3


def test_plateau_of_a_metric_that_is_not_logged_is_refused_with_the_nearest():
    spec = {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/acd", "mode": "max"}}
    told = r"^lr_scheduler.monitor: unknown metric 'val/acd'; nearest: val/acc \(choose from val/acc\)$"
    with pytest.raises(UserError, match=told):
        settle_plateau(spec, {"val/acc": "max"}, known=True)
    settled, monitor = settle_plateau(spec, {"val/acc": "max"}, known=False)
    assert (settled["init_args"], monitor) == ({"mode": "max"}, "val/acd")


class OwnPlateau(lr_scheduler.ReduceLROnPlateau):
    def __init__(self, optimizer, floor, **options):
        super().__init__(optimizer, **options)
        self.floor = floor


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
