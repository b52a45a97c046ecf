import pytest
import torch
from parameter_rates import rates, two_groups
from torch import nn
from torch.optim import lr_scheduler

from lit_ft.errors import UserError
from lit_ft.optim.run_length import RunLength
from lit_ft.optim.schedules import build_scheduler, settle_plateau
from lit_ft.optim.warmup_cosine import WarmupCosine

TEN = RunLength(max_steps=10)


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
