import json
import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from lit_ft.errors import UserError
from lit_ft.unfreezing.plan import PhaseConfig, PlateauConfig, UnfreezingState
from lit_ft.unfreezing.strategies import make_plan

STAGES = ALL = ("stem", "layer1", "layer2", "head")
HEAD = ("head",)
THREE = ("stem", "layer1", "head")
ON_LOSS = PlateauConfig(patience=1, monitor="val/loss", mode="min")


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
        # Of the 100 weights before the head at least 40 train.
        ("deepest", 3, {"num_weights": dict(zip(ALL, (20, 41, 39, 99), strict=True))}, [(0, 1, HEAD), (1, 2, ALL[1:])]),
        ("deepest", 3, {"num_weights": dict(zip(ALL, (20, 40, 40, 99), strict=True))}, [(0, 1, HEAD), (1, 2, ALL[2:])]),
        ("deepest", 3, {"num_weights": dict(zip(ALL, (90, 5, 5, 0), strict=True))}, [(0, 1, HEAD), (1, 2, ALL)]),
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


plateaus = st.builds(
    PlateauConfig,
    patience=st.integers(1, 3),
    min_epochs=st.integers(1, 4),
    min_delta=st.sampled_from([0.0, 0.1]),
    baseline=st.sampled_from([None, 0.5]),
    monitor=st.just("val/loss"),
    mode=st.sampled_from(["min", "max"]),
)


@st.composite
def plans(draw):
    """A plan, its length, and what is measured in its epochs."""
    stages = [*(f"layer{i}" for i in range(draw(st.integers(1, 5)))), "head"]
    max_epochs = draw(st.none() | st.integers(1, 40))
    strategy = draw(st.sampled_from(["full", "linear_probe", "gradual", "lp_ft", "plateau", "auto", "phases"]))
    options = {"epochs_per_stage": draw(st.integers(1, 3)), "head_epochs": draw(st.integers(1, 9))}
    if strategy == "plateau" or (strategy == "lp_ft" and draw(st.booleans())):
        options["plateau"] = draw(plateaus)
    chosen = draw(st.lists(st.sampled_from(stages))) if strategy == "auto" else []
    if strategy == "phases":
        sets = draw(st.lists(st.sets(st.sampled_from(stages), min_size=1), min_size=1, max_size=4))
        lengths = [draw(st.integers(1, 6)) for _ in sets[1:]]
        spans = [PhaseConfig(sorted(one), n, draw(st.none() | plateaus)) for one, n in zip(sets, lengths, strict=False)]
        options["phases"] = [*spans, PhaseConfig(sorted(sets[-1]))]
        options["phases"][0].train.append("head")
    values = draw(st.lists(st.none() | st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, math.nan]), max_size=40))
    scores = {epoch: {"val/loss": value} for epoch, value in enumerate(values) if value is not None}
    try:
        return strategy, make_plan(strategy, stages, max_epochs, **options).decide(chosen), max_epochs, scores
    except UserError as error:
        assert re.search(r"needs at least \d+ epochs|ends the first phase|more than epochs", str(error))  # noqa: PT017
        reject()


@pytest.mark.long
@settings(max_examples=400, deadline=None)
@given(plans())
def test_every_epoch_is_in_exactly_one_phase(drawn):
    strategy, plan, max_epochs, scores = drawn
    end = max_epochs or 60
    indices = [len(plan.phase_starts(epoch, scores)) - 1 for epoch in range(end)]
    assert indices[0] == 0
    assert all(after - before in (0, 1) for before, after in pairwise(indices))  # one after the other, none left out
    if max_epochs is not None:
        assert indices[-1] == len(plan.phases) - 1  # all are reached
    for i, phase in enumerate(plan.phases):
        length = indices.count(i)
        if i < len(plan.phases) - 1 and length and i in indices[:-1] and i + 1 in indices:
            assert phase.plateau is not None or length == phase.num_epochs
            assert phase.plateau is None or length >= phase.plateau.min_epochs
            assert phase.num_epochs is None or length <= phase.num_epochs
            assert indices.index(i) >= phase.first_epoch
    assert "head" in plan.phases[0].trainable
    if strategy != "phases":
        assert all("head" in phase.trainable for phase in plan.phases)
        sets = [set(phase.trainable) for phase in plan.phases]
        assert all(before <= after for before, after in pairwise(sets))
    starts = plan.phase_starts(end - 1, scores)
    assert starts == [indices.index(i) for i in sorted(set(indices))]


@settings(max_examples=200, deadline=None)
@given(plans(), st.integers(0, 39))
def test_what_is_measured_later_changes_no_earlier_phase(drawn, epoch):
    _, plan, _, scores = drawn
    known = {past: values for past, values in scores.items() if past < epoch}
    assert plan.phase_starts(epoch, known) == plan.phase_starts(epoch, scores)


def ends(values, **options):
    return PlateauConfig(**options).reached_after(values)


def test_a_plateau_is_reached_when_nothing_improves():
    assert ends([1.0, 0.9, 0.8, 0.8, 0.9], patience=2) == 5
    assert ends([1.0, 0.9, 0.8, 0.8], patience=2) is None
    assert ends([1.0, 1.1, 1.2], patience=2) == 3
    assert ends([0.1, 0.2, 0.3, 0.3, 0.1], patience=2, mode="max") == 5
    assert ends([0.3, 0.2, 0.1], patience=2, mode="max") == 3
    assert ends([1.0, 1.1, 1.2, 1.3], patience=1, min_epochs=4) == 4
    assert ends([1.0, 0.95, 0.9, 0.85], patience=2, min_delta=0.1) == 3
    assert ends([1.0, 0.95, 0.85, 0.8], patience=2, min_delta=0.1) is None  # against the best, not the last
    assert ends([0.9, 0.8, 0.7], patience=2, baseline=0.5) == 2
    assert ends([0.9, 0.4, 0.4], patience=2, baseline=0.5) is None
    assert ends([1.0, None, None, 1.0, None, 1.0], patience=2) == 6
    assert ends([math.nan, math.nan], patience=2) == 2
    assert ends([math.nan, 1.0, 0.9], patience=2) is None


def test_each_phase_has_a_best_value_of_its_own():
    plateau = PlateauConfig(patience=2, monitor="val/loss", mode="min")
    plan = make_plan("plateau", ALL, 20, plateau=plateau)
    # Unfreezing in epoch 3 sets the loss back; it then falls, though never below that of the first phase.
    values = [0.5, 0.6, 0.6, 2.0, 1.5, 1.2, 1.3, 1.4, 1.0]
    scores = {epoch: {"val/loss": value} for epoch, value in enumerate(values)}
    assert plan.phase_starts(9, scores) == [0, 3, 8]


def test_a_phase_ends_in_time_for_those_after_it():
    plan = make_plan("plateau", ALL, 6, plateau=PlateauConfig(min_epochs=1, monitor="val/loss"))
    falling = {epoch: {"val/loss": 1.0 / (epoch + 1)} for epoch in range(6)}
    assert plan.phase_starts(5, falling) == [0, 3, 4, 5]


def test_lp_ft_ends_its_first_phase_by_a_plateau_or_after_head_epochs():
    plan = make_plan("lp_ft", ALL, 20, head_epochs=5, plateau=PlateauConfig(patience=1, monitor="val/loss"))
    assert plan.phase_starts(19, {}) == [0, 5]
    assert plan.phase_starts(19, {0: {"val/loss": 1.0}, 1: {"val/loss": 1.0}}) == [0, 2]


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("lp_ft", {"head_epochs": 3}, [(0, 5, "stem body head")]),
        ("gradual", {}, [(0, 1, "body head"), (1, 4, "stem body head")]),
        ("auto", {}, [(0, 5, "stem body head")]),
        ("deepest", {"num_weights": {"stem": 1, "body": 2, "head": 1}}, [(0, 5, "body head")]),
        ("full", {}, [(0, 5, "stem body head")]),
        ("linear_probe", {}, [(0, 0, "head")]),
        ("phases", {"phases": [PhaseConfig(["head"], 2), PhaseConfig(["body", "head"], 5)]}, [(0, 5, "body head")]),
        ("phases", {"phases": [PhaseConfig(["*"], 5)]}, [(0, 5, "stem body head")]),
    ],
)
def test_solved_head_leaves_out_the_epochs_of_the_head_alone(strategy, options, expected):
    plan = make_plan(strategy, ["stem", "body", "head"], 5, head_fit="solved", **options)
    assert [(p.first_epoch, p.num_epochs or 0, " ".join(p.trainable)) for p in plan.phases] == expected
    assert plan.solves_head
    assert not make_plan("lp_ft", ["stem", "head"], 5).solves_head


def test_way_to_fit_the_head_that_is_unknown():
    with pytest.raises(UserError, match=r"unfreeze.head_fit.*'guessed'.*choose from trained, solved"):
        make_plan("lp_ft", ["stem", "head"], 5, head_fit="guessed")


def test_auto_trains_what_is_chosen_beside_the_head():
    undecided = make_plan("auto", ALL, 5, head_epochs=2)
    assert undecided.undecided
    assert [(phase.first_epoch, phase.trainable) for phase in undecided.phases] == [(0, HEAD), (2, ALL)]
    plan = undecided.decide(["layer1"])
    assert not plan.undecided
    assert plan.phases[1].trainable == ("layer1", "head")


def test_epoch_past_the_end_stays_in_the_last_phase():
    plan = make_plan("lp_ft", STAGES, 3)
    assert len(plan.phase_starts(2)) - 1 == len(plan.phase_starts(99)) - 1 == 1


@pytest.mark.parametrize(
    ("strategy", "max_epochs", "options", "text"),
    [
        ("gradul", 9, {}, "unfreeze.strategy: unknown strategy 'gradul'; nearest: gradual, full, auto (choose from "),
        ("full", 9, {"head_epochs": 0}, "unfreeze.head_epochs: must be at least 1 epoch, got 0"),
        ("full", 9, {"epochs_per_stage": -1}, "unfreeze.epochs_per_stage: must be at least 1 epoch, got -1"),
        ("phases", 9, {}, "unfreeze.phases and unfreeze.strategy phases belong together, but no unfreeze.phases"),
        ("full", 9, {"phases": []}, "belong together, but unfreeze.strategy is 'full'"),
        ("phases", 9, {"phases": []}, "unfreeze.phases: is empty; list at least one phase"),
        ("gradual", 3, {}, "trainer.max_epochs: strategy 'gradual' needs at least 4 epochs to reach all of its 4 "),
        ("gradual", 3, {}, "got 3; raise it, or list fewer phases with unfreeze.strategy phases"),
        (
            "gradual",
            4,
            {"head_epochs": 2},
            "got 4; raise it, or shorten its phases, as with unfreeze.head_epochs 1 unfreeze.epochs_per_stage 1",
        ),
        ("lp_ft", 2, {"head_epochs": 2}, "got 2; raise it, or shorten its phases, as with unfreeze.head_epochs 1"),
        ("lp_ft", 1, {}, "strategy 'lp_ft' needs at least 2 epochs to reach all of its 2 phases, got 1; raise it"),
        ("full", 0, {}, "strategy 'full' needs at least 1 epochs to reach all of its 1 phases, got 0"),
        (
            "full",
            9,
            {"plateau": PlateauConfig()},
            "unfreeze.plateau: unfreeze.strategy full does not take it; choose",
        ),
        (
            "plateau",
            9,
            {"plateau": PlateauConfig(patience=0)},
            "unfreeze.plateau.patience: must be at least 1",
        ),
        ("plateau", 3, {}, "strategy 'plateau' needs at least 4 epochs to reach all of its 4 phases, got 3"),
        (
            "lp_ft",
            9,
            {"plateau": PlateauConfig(patience=3), "head_epochs": 3},
            "unfreeze.head_epochs: is 3, which ends the first phase before any plateau of patience 3",
        ),
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
            "unfreeze.phases[0].train: unknown stage 'layer5'; nearest: layer2, layer1 "
            "(choose from stem, layer1, layer2, head)",
        ),
        ([(["head"], 1), (["Layer*"], None)], "unfreeze.phases[1].train: unknown stage 'Layer*'"),
        ([([], 9)], "unfreeze.phases[0].train: is empty, so nothing would train; choose from stem, layer1, "),
        ([(["stem"], 9)], "unfreeze.phases[0].train: the head is new and must train in the first phase; add head"),
        ([(["head"], None), (["*"], 8)], "unfreeze.phases[0].epochs: only the last phase may leave it out, or one"),
        ([(["head"], 2, PlateauConfig(min_epochs=3)), (["*"],)], "unfreeze.phases[0].plateau.min_epochs: is 3, more"),
        ([(["*"], 2, PlateauConfig())], "unfreeze.phases[0].plateau: nothing comes after the last phase; to end"),
        ([(["head"], 2, PlateauConfig()), (["*"], 7)], "unfreeze.phases[1].epochs: the last phase lasts to the end"),
        ([(["head"], 1), (["*"], 0)], "unfreeze.phases[1].epochs: must be at least 1, got 0"),
        ([(["head"], 1), (["*"], 7)], "unfreeze.phases: last 8 epochs together, but trainer.max_epochs is 9; make"),
        (
            [(["head"], 1), (["*"], 9)],
            "unfreeze.phases: last 10 epochs together, but trainer.max_epochs is 9; make",
        ),
        ([(["head"], 9), (["*"], None)], "strategy 'phases' needs at least 10 epochs to reach all of its 2 phases"),
    ],
)
def test_listed_phases_that_cannot_be_carried_out_are_refused(phases, text):
    with pytest.raises(UserError, match=re.escape(text)):
        make_plan("phases", STAGES, 9, phases=[PhaseConfig(*phase) for phase in phases])


def test_phases_begin_with_their_epochs():
    state = UnfreezingState(make_plan("gradual", THREE, 5, head_epochs=2))
    seen = []
    for epoch in range(5):
        state.starts = state.starts_by(epoch)
        seen.append((state.index, state.phase.trainable[0]))
    assert seen == [(0, "head"), (0, "head"), (1, "layer1"), (2, "stem"), (2, "stem")]
    assert state.starts == [0, 2, 3]
    assert not state.is_adaptive


def test_phase_ends_by_the_metrics_that_were_recorded():
    state = UnfreezingState(make_plan("plateau", THREE, 9, plateau=ON_LOSS))
    for epoch, loss in enumerate([2.0, 1.0, 1.0]):
        state.scores[epoch] = {"val/loss": loss}
    assert state.starts_by(3) == [0, 3]
    assert state.is_adaptive


def test_stages_with_a_share_of_the_largest_gradient_are_chosen():
    state = UnfreezingState(make_plan("auto", ALL, 5))
    state.decide({"stem": 0.1, "layer1": 0.6, "layer2": 1.0}, threshold=0.5)
    assert state.plan.phases[1].trainable == ("layer1", "layer2", "head")


def test_stages_are_chosen_once_by_their_gradients():
    state = UnfreezingState(make_plan("auto", THREE, 5))
    assert state.plan.undecided
    state.decide({"stem": 0.1, "layer1": 1.0}, 0.5)
    assert (state.plan.undecided, state.plan.phases[1].trainable) == (False, ("layer1", "head"))
    state.decide({"stem": 1.0, "layer1": 0.1}, 0.5)
    assert state.plan.phases[1].trainable == ("layer1", "head")


@pytest.mark.parametrize("strategy", ["auto", "plateau"])
def test_state_of_a_checkpoint_is_resumed(strategy):
    def made():
        return make_plan(strategy, THREE, 9, plateau=ON_LOSS if strategy == "plateau" else None)

    state = UnfreezingState(made())
    if strategy == "auto":
        state.decide({"stem": 0.1, "layer1": 1.0}, 0.5)
    for epoch in range(3):
        state.starts = state.starts_by(epoch)
        state.scores[epoch] = {"val/loss": 1.0}
    saved = state.to_plain()
    assert list(saved) == ["plan", "scores", "gradients", "starts"]
    assert json.loads(json.dumps(saved["plan"])) == saved["plan"]
    resumed = UnfreezingState(made())
    resumed.load_plain(saved, 0.5)
    assert resumed == state
    assert resumed.starts == {"auto": [0, 1], "plateau": [0, 2]}[strategy]
