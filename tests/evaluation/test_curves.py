from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_runs import small_module

from lit_ft.data.loading.loader import Loader
from lit_ft.evaluation import curves
from lit_ft.evaluation.curves import Drift, Speed, phase_curves
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.plan import UnfreezingState
from lit_ft.unfreezing.strategies import make_plan


def run_of(module, strategy, epoch=0, rank=0):
    callback = GradualUnfreezing(strategy)
    callback.state = UnfreezingState(make_plan(strategy, list(module.stage_modules()), 3))
    strategy = SingleDeviceStrategy(torch.device("cpu"))
    return SimpleNamespace(callbacks=[callback], strategy=strategy, is_global_zero=rank == 0, current_epoch=epoch)


@pytest.fixture
def module():
    return small_module(weights=None, classes=10)


def test_drift_is_the_relative_distance_of_each_stage_but_the_head(module):
    drift = Drift(run_of(module, "full"), module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    assert drift.compute(module) == {"drift/conv": pytest.approx(0.5), "drift/dense": pytest.approx(0.5)}


def test_drift_of_stages_that_never_train_is_zero_and_keeps_no_weights(module):
    drift = Drift(run_of(module, "linear_probe"), module)
    assert drift.norms == {}
    assert drift.compute(module) == {"drift/conv": 0.0, "drift/dense": 0.0}


def test_drift_of_a_run_that_began_with_other_weights_is_not_measured(module):
    drift = Drift(run_of(module, "full"), module)
    drift.check({name: norm * (1 + 1e-7) for name, norm in drift.norms.items()})
    assert len(drift.compute(module)) == 2
    with pytest.warns(UserWarning, match=r"^drift is not logged: the run began with other weights"):
        drift.check({name: norm * 1.01 for name, norm in drift.norms.items()})
    assert drift.compute(module) == {}


def test_other_processes_keep_no_weights(module):
    assert Drift(run_of(module, "full", rank=1), module).norms == {}


def test_phases_count_from_one_with_the_share_of_parameters_that_train(module):
    module.set_trainable(["head"])
    whole = sum(parameter.numel() for parameter in module.parameters())
    assert phase_curves(run_of(module, "lp_ft", epoch=1), module) == {
        "phase/number": 2,
        "phase/trained_share": pytest.approx(1290 / whole),
    }


def test_speed_is_of_training_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(curves, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    loader = Loader.__new__(Loader)
    loader.seconds_waited = 7.0
    speed, batch = Speed(), (torch.zeros(4, 1), torch.zeros(4))
    speed.begin(loader)
    for _ in range(2):
        now[0] += 2.0
        loader.seconds_waited += 0.5
        speed.step(batch)
        now[0] += 100.0  # a validation
        speed.go_on()
    trainer = SimpleNamespace(world_size=3, train_dataloader=loader)
    assert speed.compute(trainer) == {"speed/images_per_second": 6.0, "speed/share_waiting_for_data": 0.25}
    trainer.train_dataloader = [batch]
    assert speed.compute(trainer) == {"speed/images_per_second": 6.0}
    speed.begin(loader)
    assert speed.compute(trainer) == {}
