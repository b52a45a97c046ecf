import killed_runs
import pytest


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_run_killed_at_any_moment_loses_no_checkpoint_and_ends_as_the_uninterrupted_one(kills, tmp_path):
    found = killed_runs.launch(tmp_path, kills)
    print(found)
    assert found["wrong"] == []
    assert found["kills"] == kills
    assert found["in_writes"] >= kills // 2  # by turns with those at any moment, some of which also hit a write
    assert (found["steps"], found["best_step"]) == (9, 9)  # all phases, and the best is replaced by a later one
