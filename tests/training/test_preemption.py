import preempted_runs
import pytest


@pytest.mark.parametrize("signals", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_run_ended_by_signals_at_any_moment_ends_as_the_uninterrupted_one(signals, tmp_path):
    found = preempted_runs.launch(tmp_path, signals)
    print(found)
    assert found["wrong"] == []
    assert found["sent"] == signals
