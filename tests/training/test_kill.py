import killed_runs
import pytest

WITHIN_EPOCHS = {"steps": 9, "best_step": 9}
AT_EPOCH_ENDS = {"steps": 30, "best_step": 30}


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "kills", "whole"),
    [
        ("python", 3, WITHIN_EPOCHS),
        ("command", 1, AT_EPOCH_ENDS),
        pytest.param("python", 50, WITHIN_EPOCHS, marks=pytest.mark.slow),
        pytest.param("command", 10, AT_EPOCH_ENDS, marks=pytest.mark.slow),
    ],
)
def test_run_killed_at_any_moment_loses_no_checkpoint_and_ends_as_the_uninterrupted_one(how, kills, whole, tmp_path):
    found = killed_runs.launch(tmp_path, kills, how)
    print(found)
    assert found["wrong"] == []
    assert found["kills"] == kills
    assert found["in_writes"] >= (kills + 1) // 2  # by turns with those at any moment, some of which also hit a write
    assert found.items() >= whole.items()  # all phases, and a best epoch that replaced an earlier one
