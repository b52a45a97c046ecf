import os
import time

import pytest
import torch
from safetensors.torch import load_file

from lit_ft.data.files import derived_rows
from lit_ft.data.files.derived_cache import load_derived
from lit_ft.data.files.derived_rows import DerivedRows, join_rows


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


ARRAYS = {"first": torch.randn(10, 3), "second": torch.randn(10, 5), "map": torch.randn(10, 2, 2)}


def write(starts=(4, 0, 8)):
    with DerivedRows("rows", "key", 10) as rows:
        for start in starts:
            rows.write(start, {name: array[start : start + 4] for name, array in ARRAYS.items()})
        return rows.finish({"seconds": 1.5})


def same(found):
    return found.keys() == ARRAYS.keys() and all(found[name].equal(ARRAYS[name]) for name in ARRAYS)


def test_rows_are_found_as_they_were_written_part_by_part(cache):
    arrays, facts = write()
    assert same(arrays)
    assert facts == {"seconds": 1.5}
    assert same(load_derived("rows", "key")[0])
    assert load_derived("rows", "key")[1] == facts
    [path] = cache.iterdir()
    assert same(load_file(path))


def test_pass_that_fails_leaves_nothing_and_one_that_is_killed_no_entry(cache):
    with DerivedRows("rows", "key", 10) as rows:
        rows.write(0, {"first": torch.ones(4, 3)})
        [unfinished] = cache.iterdir()
        assert unfinished.stat().st_size >= 10 * 3 * 4  # reserved
        assert load_derived("rows", "key") is None
    assert list(cache.iterdir()) == []


def test_what_killed_processes_left_is_removed_when_nobody_writes_it_any_more(cache):
    cache.mkdir()
    old, new, other = (
        cache / name for name in (".rows-1.safetensors.a", ".rows-1.safetensors.b", ".index-1.safetensors.c")
    )
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    write()
    assert [path.exists() for path in (old, new, other)] == [False, True, True]


@pytest.mark.parametrize("failure", ["folder", "space"])
def test_where_no_file_can_be_written_rows_are_kept_in_memory(failure, cache, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    if failure == "folder":
        cache.write_text("a file")
    else:
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.warns(UserWarning, match=r"cache: cannot be written .*; to keep what is worked out: set LIT_FT_CACHE$"):
        arrays, facts = write()
    assert same(arrays)
    assert facts == {"seconds": 1.5}
    assert failure == "folder" or list(cache.iterdir()) == []


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_rows_are_joined_in_order(in_memory, cache, monkeypatch):
    monkeypatch.setattr(derived_rows, "_IN_MEMORY", in_memory)
    parts = [torch.randn(1500, 3), torch.randn(1, 3), torch.randn(40, 3)]
    joined = join_rows(parts)
    assert joined.equal(torch.cat(parts))
    assert joined[::7].sum().isfinite()
    assert list(cache.glob("*")) == []  # no name is left
    assert join_rows(parts[:1]) is parts[0]


def test_rows_are_joined_in_memory_where_no_file_can_be_written(cache, monkeypatch):
    monkeypatch.setattr(derived_rows, "_IN_MEMORY", 0)
    cache.write_text("a file")
    parts = [torch.randn(5, 3), torch.randn(2, 3)]
    with pytest.warns(UserWarning, match="cannot be written"):
        assert join_rows(parts).equal(torch.cat(parts))
