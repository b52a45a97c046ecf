"""Atomic writes, and a manifest that several processes write."""

import os
import threading

import pytest
from filelock import FileLock

from lit_ft.assets import read_manifest, record, replace_atomically
from lit_ft.errors import UserError


def test_file_behind_a_link_is_replaced_from_its_own_folder(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "elsewhere" / "file.csv")
    with replace_atomically(tmp_path / "link.csv") as unfinished:
        assert unfinished.parent == tmp_path / "elsewhere"  # a file can replace another within a file system alone
        unfinished.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "elsewhere" / "file.csv").read_text() == "new"
    assert [file.name for file in (tmp_path / "elsewhere").iterdir()] == ["file.csv"]


def test_two_processes_of_one_number_write_one_file_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers that share a file system
    path = tmp_path / "file.csv"
    with replace_atomically(path) as mine:
        mine.write_text("mine")
        with replace_atomically(path) as theirs:
            theirs.write_text("theirs")
        assert (path.read_text(), mine.read_text()) == ("theirs", "mine")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("old")

    def write_half():
        with replace_atomically(path) as unfinished:
            unfinished.write_text("half")
            raise OSError(28, "No space left")

    with pytest.raises(UserError, match=rf"^{path}: cannot be written \(No space left\)$"):
        write_half()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_entries_that_are_recorded_at_once_are_all_in_the_manifest(tmp_path):
    for number in range(40):
        (tmp_path / str(number)).write_text(str(number))

    def record_some(first):
        for number in range(first, 40, 4):
            record(tmp_path, tmp_path / str(number), f"https://{number}")

    threads = [threading.Thread(target=record_some, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    urls = {name: entry["url"] for name, entry in read_manifest(tmp_path).items()}
    assert urls == {str(number): f"https://{number}" for number in range(40)}


def test_manifest_on_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def acquire(self, *_, **__):
        raise NotImplementedError("no flock")

    monkeypatch.setattr(FileLock, "__enter__", acquire)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"manifest.json: cannot be locked by its file system; name a folder"):
        record(tmp_path, tmp_path / "file")
