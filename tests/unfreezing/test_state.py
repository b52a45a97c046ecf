import json

import pytest

from lit_ft.unfreezing.plan import PlateauConfig
from lit_ft.unfreezing.state import UnfreezingState
from lit_ft.unfreezing.strategies import make_plan

STAGES = ("stem", "layer1", "head")
PLATEAU = PlateauConfig(patience=1, monitor="val/loss", mode="min")


def test_phases_begin_with_their_epochs():
    state = UnfreezingState(make_plan("gradual", STAGES, 5, head_epochs=2))
    seen = []
    for epoch in range(5):
        state.enter(epoch)
        seen.append((state.index, state.phase.trainable[0]))
    assert seen == [(0, "head"), (0, "head"), (1, "layer1"), (2, "stem"), (2, "stem")]
    assert state.starts == [0, 2, 3]
    assert not state.is_adaptive


def test_phase_ends_by_the_metrics_that_were_recorded():
    state = UnfreezingState(make_plan("plateau", STAGES, 9, plateau=PLATEAU))
    for epoch, loss in enumerate([2.0, 1.0, 1.0]):
        state.record(epoch, {"val/loss": loss})
    state.enter(3)
    assert state.starts == [0, 3]
    assert state.is_adaptive


def test_stages_are_chosen_once_by_their_gradients():
    state = UnfreezingState(make_plan("auto", STAGES, 5))
    assert state.plan.undecided
    state.decide({"stem": 0.1, "layer1": 1.0}, 0.5)
    assert (state.plan.undecided, state.plan.phases[1].trainable) == (False, ("layer1", "head"))
    state.decide({"stem": 1.0, "layer1": 0.1}, 0.5)
    assert state.plan.phases[1].trainable == ("layer1", "head")


@pytest.mark.parametrize("strategy", ["auto", "plateau"])
def test_state_of_a_checkpoint_is_resumed(strategy):
    def made():
        return make_plan(strategy, STAGES, 9, plateau=PLATEAU if strategy == "plateau" else None)

    state = UnfreezingState(made())
    if strategy == "auto":
        state.decide({"stem": 0.1, "layer1": 1.0}, 0.5)
    for epoch in range(3):
        state.enter(epoch)
        state.record(epoch, {"val/loss": 1.0})
    saved = state.to_plain()
    assert list(saved) == ["plan", "scores", "gradients", "starts"]
    assert json.loads(json.dumps(saved["plan"])) == saved["plan"]
    resumed = UnfreezingState(made())
    resumed.load_plain(saved, 0.5)
    assert resumed == state
    assert resumed.starts == {"auto": [0, 1], "plateau": [0, 2]}[strategy]
