import errno

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_ft.cli.failures import explain_failure, interruption, raise_user_errors
from lit_ft.errors import LibraryError, UserError
from lit_ft.runs import Run

FULL = OSError(errno.ENOSPC, "No space left on device")


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FULL, "cannot be written to (No space left on device); no checkpoint was written before"),
        (caused(RuntimeError("zip"), FULL), "cannot be written to (No space left on device)"),
        (RuntimeError("of lit_ft"), None),
        (caused(RuntimeError("wrapped"), UserError("`model.lr`: too large")), None),
    ],
    ids=["disk", "behind", "fault", "user"],
)
@pytest.mark.parametrize("checkpoint", [None, "a.ckpt"])
def test_failure_is_a_user_error_where_the_disk_is_full(tmp_path, error, checkpoint, expected):
    found = explain_failure(error, checkpoint, Run(tmp_path))
    assert (found is None) is (expected is None)
    assert expected is None or str(found).startswith(f"{tmp_path}: {expected}")


@pytest.mark.parametrize(
    ("before_training", "error", "caught"),
    [
        (True, ValueError("bad option"), LibraryError),
        (False, ValueError("a fault"), ValueError),
        (False, MisconfigurationException("bad option"), LibraryError),
        (True, KeyError("a fault"), KeyError),
    ],
)
def test_error_of_a_library_is_one_of_the_user_as_long_as_nothing_was_trained(
    monkeypatch, before_training, error, caught
):
    # This file would count as the user's own code.
    monkeypatch.setattr("lit_ft.cli.failures.is_from_user_code", lambda *_: False)
    with pytest.raises(caught) as found, raise_user_errors(before_training=lambda: before_training):
        raise error
    assert type(found.value) is caught


def test_interruption_names_the_checkpoint_if_there_is_one(tmp_path):
    assert str(interruption(Run(tmp_path))) == str(interruption(None)) == "interrupted"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert str(interruption(Run(tmp_path))).endswith(f"with --ckpt_path {tmp_path}/checkpoints/last.ckpt")
