import errno
import signal
from types import SimpleNamespace

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_ft.cli.failures import (
    describe_interruption,
    explain_failure,
    format_rank,
    interruption,
    locate_failure,
    raise_user_errors,
)
from lit_ft.errors import LibraryError, UserError
from lit_ft.runs import Run
from lit_ft.training.signals import Interrupted

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
    found = explain_failure(error, checkpoint, Run(tmp_path), SimpleNamespace(world_size=1))
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


def test_interruption_names_rank_signal_and_checkpoint(tmp_path):
    run, alone = Run(tmp_path), format_rank(SimpleNamespace(world_size=1))
    second = format_rank(SimpleNamespace(world_size=2, global_rank=1))
    line = "interrupted before its first checkpoint; the same command begins anew"
    assert interruption(KeyboardInterrupt(), lambda n: describe_interruption(n, run, alone)).message == line
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert describe_interruption(signal.SIGTERM, None, alone) == "interrupted by SIGTERM"  # a test of the checkpoint
    ended = caused(SystemExit(1), Interrupted(signal.SIGTERM))  # as Lightning hands it on
    found = interruption(ended, lambda number: describe_interruption(number, run, second))
    assert found.message == (
        f"rank 1: interrupted by SIGTERM; to resume: the same command with --ckpt_path {tmp_path}/checkpoints/last.ckpt"
    )
    assert found.code == 143
    told = Interrupted(signal.SIGTERM, "")
    assert interruption(caused(SystemExit(1), told), lambda number: "another") is told


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        (3, "a.png: gone", "rank 1: a.png: gone; to resume: the same command with --ckpt_path {}"),
        (0, "a.png: gone", "rank 1: a.png: gone"),
        (3, "resume from best.ckpt", "rank 1: resume from best.ckpt"),
    ],
)
def test_failure_has_the_rank_and_how_to_resume(tmp_path, step, text, expected):
    run = Run(tmp_path)
    run.checkpoints.mkdir()
    run.last.touch()
    found = locate_failure(LibraryError(text), run, SimpleNamespace(world_size=2, global_rank=1, global_step=step))
    assert str(found) == expected.format(run.last)
    assert type(found) is LibraryError


def test_fold_is_resumed_with_all_of_its_cross_validation(tmp_path):
    fold = Run(tmp_path).fold(3)
    resume = f"; to resume: the same command with --resume {tmp_path}"
    found = interruption(KeyboardInterrupt(), lambda number: describe_interruption(number, fold, ""))
    assert found.message == f"interrupted{resume}"
    trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=3)
    assert str(locate_failure(LibraryError("a.png: gone"), fold, trainer)) == f"a.png: gone{resume}"
    assert str(locate_failure(LibraryError(f"lost{resume}"), fold, trainer)) == f"lost{resume}"  # said once
    full = explain_failure(OSError(errno.ENOSPC, "No space left on device"), None, fold, trainer)
    assert str(full) == f"{fold.folder}: cannot be written to (No space left on device); make room{resume}"


@pytest.mark.parametrize("how", ["is killed by signal: Bus error. It is possible", "exited unexpectedly"])
def test_worker_that_is_gone_is_named_also_where_own_code_ran(tmp_path, how):
    numbers = "(pid(s) 12, 13)" if "exited" in how else "(pid 12)"
    found = explain_failure(RuntimeError(f"DataLoader worker {numbers} {how}"), None, Run(tmp_path), None)
    reason = "was killed by signal: Bus error" if "killed" in how else how
    assert str(found).startswith(f"a worker process that reads images {reason}, as when memory")
