import os

import pytest
import torch
from safetensors.torch import save_file

from lit_ft.assets import cache_folder
from lit_ft.data.files.derived_cache import file_stamp, load_or_derive


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "numbers"
    path.write_text("1 2 3")
    return path


def numbers(source, made):
    def make():
        made.append(1)
        return {"x": torch.tensor([int(n) for n in source.read_text().split()])}, {"of": file_stamp(source)}

    arrays, _ = load_or_derive("numbers", str(source), lambda found: found[1].get("of") == file_stamp(source), make)
    return arrays["x"].tolist()


def test_it_is_made_once_and_again_when_the_source_changes(cache, source):
    made = []
    assert [numbers(source, made), numbers(source, made)] == [[1, 2, 3]] * 2
    assert len(made) == 1
    source.write_text("4 5")
    assert [numbers(source, made), numbers(source, made)] == [[4, 5]] * 2
    assert len(made) == 2
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_what_is_damaged_is_made_anew(cache, source, damage):
    made = []
    numbers(source, made)
    [path] = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert numbers(source, made) == [1, 2, 3]
    assert len(made) == 2


@pytest.mark.parametrize("metadata", [None, {"facts": "[1]"}, {"facts": "{"}, {"facts": "[" * 10**5}, {"other": "{}"}])
def test_facts_of_another_kind_are_made_anew(cache, source, metadata):
    made = []
    numbers(source, made)
    [path] = cache.iterdir()
    save_file({"x": torch.zeros(1)}, path, metadata)
    assert numbers(source, made) == [1, 2, 3]
    assert len(made) == 2


def test_where_nothing_can_be_written_it_goes_on_with_a_warning(cache, source):
    cache.write_text("a file in the place of the folder")
    made = []
    with pytest.warns(UserWarning, match=r"cache: cannot be written .*; to keep what is worked out: set LIT_FT_CACHE$"):
        assert numbers(source, made) == [1, 2, 3]
    assert len(made) == 1


def test_nothing_unfinished_stays(cache, source, monkeypatch):
    def full(arrays, path, facts):
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("lit_ft.data.files.derived_cache.save_file", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        numbers(source, [])
    assert list(cache.iterdir()) == []


def test_two_processes_of_one_number_store_one_entry_apart(cache, source, monkeypatch):
    def at_once(arrays, path, facts):
        save_file(arrays, path, facts)
        monkeypatch.setattr("lit_ft.data.files.derived_cache.save_file", save_file)
        assert numbers(source, []) == [1, 2, 3]  # the other process, before this one renames its file

    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers that share a file system
    monkeypatch.setattr("lit_ft.data.files.derived_cache.save_file", at_once)
    assert numbers(source, []) == [1, 2, 3]
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_cache_folder_is_the_variable_or_in_the_users_cache(monkeypatch):
    monkeypatch.setenv("LIT_FT_CACHE", "~/mine")
    monkeypatch.setenv("HOME", "/home/ann")
    assert str(cache_folder()) == "/home/ann/mine"
    monkeypatch.delenv("LIT_FT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert str(cache_folder()) == "/home/ann/.cache/lit_ft"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert str(cache_folder()) == "/scratch/lit_ft"


def test_cache_folder_is_that_of_the_system_unless_there_is_one_of_an_earlier_release(tmp_path, monkeypatch):
    monkeypatch.delenv("LIT_FT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: tmp_path / "Library" / "Caches" / name)
    assert cache_folder() == tmp_path / "Library" / "Caches" / "lit_ft"
    (tmp_path / ".cache" / "lit_ft").mkdir(parents=True)
    assert cache_folder() == tmp_path / ".cache" / "lit_ft"
