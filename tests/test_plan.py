import re
from itertools import product

import pytest

from lit_ft.errors import UserError
from lit_ft.plan import Phase, PhaseConfig, Plan, make_plan

STAGES = ("stem", "layer1", "layer2")
ALL = (*STAGES, "head")
HEAD = ("head",)


def spans(*args, **options):
    return [(p.first_epoch, p.num_epochs, p.trainable) for p in make_plan(*args, **options).phases]


@pytest.mark.parametrize(
    ("strategy", "max_epochs", "options", "expected"),
    [
        ("full", 3, {}, [(0, 3, ALL)]),
        ("full", None, {}, [(0, None, ALL)]),
        ("linear_probe", 3, {}, [(0, 3, HEAD)]),
        ("lp_ft", 3, {}, [(0, 1, HEAD), (1, 2, ALL)]),
        ("lp_ft", 5, {"head_epochs": 4}, [(0, 4, HEAD), (4, 1, ALL)]),
        ("lp_ft", None, {"head_epochs": 2}, [(0, 2, HEAD), (2, None, ALL)]),
        ("gradual", 4, {}, [(0, 1, HEAD), (1, 1, ALL[2:]), (2, 1, ALL[1:]), (3, 1, ALL)]),
        (
            "gradual",
            20,
            {"head_epochs": 2, "epochs_per_stage": 3},
            [(0, 2, HEAD), (2, 3, ALL[2:]), (5, 3, ALL[1:]), (8, 12, ALL)],
        ),
        (
            "phases",
            6,
            {"phases": [PhaseConfig(["head"], 2), PhaseConfig(["layer*", "head"], 1), PhaseConfig(["*"])]},
            [(0, 2, HEAD), (2, 1, ALL[1:]), (3, 3, ALL)],
        ),
        ("phases", 2, {"phases": [PhaseConfig(["head", "stem"], 2)]}, [(0, 2, ("stem", "head"))]),
        ("phases", None, {"phases": [PhaseConfig(["head"], 2), PhaseConfig(["stem"], 3)]}, None),
    ],
)
def test_phases_of_a_strategy(strategy, max_epochs, options, expected):
    expected = expected or [(0, 2, HEAD), (2, None, ("stem",))]
    assert spans(strategy, STAGES, max_epochs, **options) == expected


def test_every_epoch_is_in_exactly_one_phase():
    num_plans = 0
    for strategy, stages, each, head, max_epochs in product(
        ["full", "linear_probe", "gradual", "lp_ft"], [STAGES[:1], STAGES], [1, 2, 3], [1, 2], [*range(1, 13), None]
    ):
        needed = {"gradual": head + each * (len(stages) - 1) + 1, "lp_ft": head + 1}.get(strategy, 1)
        options = {"epochs_per_stage": each, "head_epochs": head}
        if max_epochs is not None and max_epochs < needed:
            with pytest.raises(UserError, match=f"at least {needed} epochs .* got {max_epochs};"):
                make_plan(strategy, stages, max_epochs, **options)
            continue
        plan = make_plan(strategy, stages, max_epochs, **options)
        num_plans += 1
        for epoch in range(max_epochs or 20):
            holding = [
                i
                for i, p in enumerate(plan.phases)
                if p.first_epoch <= epoch and (p.num_epochs is None or epoch < p.first_epoch + p.num_epochs)
            ]
            assert holding == [plan.phase_index(epoch)]
        assert all("head" in phase.trainable for phase in plan.phases)
        sizes = [len(phase.trainable) for phase in plan.phases]
        assert sizes == sorted(set(sizes))
    assert num_plans > 200


def test_first_epoch_is_that_of_the_first_phase_that_trains_the_stage():
    plan = Plan(("a", "b", "c", "head"), (Phase(0, 2, ("a", "head")), Phase(2, 3, ("b", "head")), Phase(5, 1, ("a",))))
    assert [plan.first_epoch(stage) for stage in plan.stages] == [0, 2, None, 0]


def test_epoch_past_the_end_stays_in_the_last_phase():
    plan = make_plan("lp_ft", STAGES, 3)
    assert plan.phase_index(2) == plan.phase_index(99) == 1


@pytest.mark.parametrize(
    ("strategy", "max_epochs", "options", "text"),
    [
        ("gradul", 9, {}, "--unfreeze.strategy: unknown strategy 'gradul'; nearest: gradual, full (choose from full, "),
        ("full", 9, {"head_epochs": 0}, "--unfreeze.head_epochs: must be at least 1 epoch, got 0"),
        ("full", 9, {"epochs_per_stage": -1}, "--unfreeze.epochs_per_stage: must be at least 1 epoch, got -1"),
        ("phases", 9, {}, "--unfreeze.phases and --unfreeze.strategy phases belong together, but no --unfreeze.phases"),
        ("full", 9, {"phases": []}, "belong together, but --unfreeze.strategy is 'full'"),
        ("phases", 9, {"phases": []}, "--unfreeze.phases: is empty; list at least one phase"),
        ("gradual", 3, {}, "--trainer.max_epochs: strategy 'gradual' needs at least 4 epochs to reach all of its 4 "),
        ("lp_ft", 1, {}, "strategy 'lp_ft' needs at least 2 epochs to reach all of its 2 phases, got 1; raise it"),
        ("full", 0, {}, "strategy 'full' needs at least 1 epochs to reach all of its 1 phases, got 0"),
    ],
)
def test_contradicting_options_are_refused(strategy, max_epochs, options, text):
    with pytest.raises(UserError, match=re.escape(text)):
        make_plan(strategy, STAGES, max_epochs, **options)


@pytest.mark.parametrize(
    ("phases", "text"),
    [
        (
            [(["head", "layer5"], 9)],
            "--unfreeze.phases[0].train: unknown stage 'layer5'; nearest: layer2, layer1 "
            "(choose from stem, layer1, layer2, head)",
        ),
        ([(["head"], 1), (["Layer*"], None)], "--unfreeze.phases[1].train: unknown stage 'Layer*'"),
        ([([], 9)], "--unfreeze.phases[0].train: is empty, so nothing would train; choose from stem, layer1, "),
        ([(["stem"], 9)], "--unfreeze.phases[0].train: the head is new and must train in the first phase; add head"),
        ([(["head"], None), (["*"], 8)], "--unfreeze.phases[0].epochs: only the last phase may leave it out"),
        ([(["head"], 1), (["*"], 0)], "--unfreeze.phases[1].epochs: must be at least 1, got 0"),
        ([(["head"], 1), (["*"], 7)], "--unfreeze.phases: last 8 epochs together, but --trainer.max_epochs is 9; make"),
        (
            [(["head"], 1), (["*"], 9)],
            "--unfreeze.phases: last 10 epochs together, but --trainer.max_epochs is 9; make",
        ),
        ([(["head"], 9), (["*"], None)], "strategy 'phases' needs at least 10 epochs to reach all of its 2 phases"),
    ],
)
def test_listed_phases_that_cannot_be_carried_out_are_refused(phases, text):
    with pytest.raises(UserError, match=re.escape(text)):
        make_plan("phases", STAGES, 9, phases=[PhaseConfig(*phase) for phase in phases])
