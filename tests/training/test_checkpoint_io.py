import errno
import os

import pytest
import torch
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment

from lit_ft import AtomicCheckpointIO
from lit_ft.errors import UserError
from lit_ft.runs import find_checkpoint
from lit_ft.training.trainer import Trainer


def number_in(path):
    return torch.load(path, weights_only=True)["number"]


def leave_part(folder, age_seconds):
    """What a run leaves that was killed within a write so long ago."""
    part = folder / ".0123456789abcdef.saving"
    part.write_bytes(b"PK")
    os.utime(part, (part.stat().st_mtime - age_seconds,) * 2)
    return part


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_checkpoint_is_replaced_and_nothing_is_left_beside_it(tmp_path, scheme):
    path = tmp_path / "new" / "last.ckpt"
    for number in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"number": number}, f"{scheme}{path}")
        assert number_in(path) == number
    assert list(path.parent.iterdir()) == [path]


def test_old_checkpoint_stays_whole_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, path)
    seen = []

    def fsync(descriptor, fsync=os.fsync):
        fsync(descriptor)
        (part,) = set(tmp_path.iterdir()) - {path}
        # A requeued job looks for the number of its newest checkpoint in all names with "ckpt_".
        seen.append((number_in(path), number_in(part), part.suffix == ".ckpt" or "ckpt" in part.name))

    monkeypatch.setattr(os, "fsync", fsync)
    AtomicCheckpointIO().save_checkpoint({"number": 2}, path)
    assert seen == [(1, 2, False)]


def test_write_that_fails_leaves_the_old_checkpoint_alone(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, path)

    def full(checkpoint, file):
        file.write(b"PK")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos")  # as torch's writer does while it closes

    monkeypatch.setattr(torch, "save", full)
    told = rf"^{tmp_path}: last.ckpt cannot be written \(No space .*\); intact: last.ckpt; make room, and resume from "
    with pytest.raises(UserError, match=told):
        AtomicCheckpointIO().save_checkpoint({"number": 2}, path)
    assert (number_in(path), list(tmp_path.iterdir())) == (1, [path])
    with pytest.raises(UserError, match=r"no checkpoint was written before; make room, and start again$"):
        AtomicCheckpointIO().save_checkpoint({"number": 2}, tmp_path / "new" / "last.ckpt")


def test_fault_of_what_is_saved_is_no_fault_of_the_disk(tmp_path, monkeypatch):
    def fails(checkpoint, file):
        raise RuntimeError("cannot pickle")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="cannot pickle"):
        AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "last.ckpt")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_checkpoint_may_be_read_by_those_who_may_read_other_files(tmp_path, umask):
    before = os.umask(umask)
    try:
        AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "last.ckpt")
    finally:
        os.umask(before)
    assert (tmp_path / "last.ckpt").stat().st_mode & 0o777 == 0o666 & ~umask


def test_next_save_removes_what_a_killed_run_left(tmp_path):
    part = leave_part(tmp_path, age_seconds=10)
    AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "other.ckpt")
    assert not part.exists()


def test_file_that_another_run_is_writing_is_left_alone(tmp_path):
    part = leave_part(tmp_path, age_seconds=-10)
    AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "other.ckpt")
    assert part.exists()


def test_newest_checkpoint_is_a_whole_one(tmp_path):
    for run, age_seconds in (("version_0", 20), ("version_1", 10)):
        path = tmp_path / run / "checkpoints" / "last.ckpt"
        AtomicCheckpointIO().save_checkpoint({"number": 1}, path)
        os.utime(path, (path.stat().st_mtime - age_seconds,) * 2)
    (tmp_path / "version_2" / "checkpoints").mkdir(parents=True)
    for run in ("version_0", "version_2"):
        leave_part(tmp_path / run / "checkpoints", age_seconds=0)
    assert find_checkpoint(str(tmp_path), "last") == str(tmp_path / "version_1" / "checkpoints" / "last.ckpt")


def test_remote_checkpoints_are_lightnings():
    path = "memory://test_checkpoint_io/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"number": 1}


def test_storage_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt", storage_options={"a": 1})


def test_trainer_writes_so_unless_the_user_has_a_plugin_for_it():
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    assert type(Trainer(**quiet).strategy.checkpoint_io) is AtomicCheckpointIO
    assert type(Trainer(**quiet, plugins=[LightningEnvironment()]).strategy.checkpoint_io) is AtomicCheckpointIO
    theirs = AsyncCheckpointIO(TorchCheckpointIO())
    assert Trainer(**quiet, plugins=theirs).strategy.checkpoint_io is theirs


def test_checkpoints_can_be_written_by_a_thread(tmp_path):
    plugin = AsyncCheckpointIO(AtomicCheckpointIO())
    for number in range(10):
        plugin.save_checkpoint({"number": number}, tmp_path / "last.ckpt")
    plugin.teardown()
    assert number_in(tmp_path / "last.ckpt") == 9


def test_interrupt_within_a_write_is_an_interrupt(tmp_path, monkeypatch):
    def write(content, file):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")  # as of torch's writer, on its way out

    monkeypatch.setattr(torch, "save", write)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
