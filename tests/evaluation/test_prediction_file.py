import os

import pytest

from lit_ft.data.tables.tables import unescape_formula
from lit_ft.evaluation.prediction_file import build_rows, check_target, is_device, write_rows

NAMES = ["ant", "=bee"]


@pytest.mark.parametrize(
    ("predictions", "paths", "is_multiclass", "digits", "rows"),
    [
        ({1: [0.25, 0.75], 0: [1.0, 0.0]}, None, True, 9, [["0", "ant", "1"], ["1", "'=bee", "0.75"]]),
        ({0: [1 / 3, 2 / 3]}, ["a.png"], True, 3, [["a.png", "'=bee", "0.667"]]),
        ({0: [1 / 3, -2.0]}, ["+a.png"], False, 3, [["'+a.png", "0.333", "-2"]]),
        ({0: [0.1, 0.2]}, ["a"], False, 17, [["a", "0.10000000000000001", "0.20000000000000001"]]),
        ({}, [], True, 9, []),
    ],
)
def test_rows_have_the_best_class_or_a_column_a_class(predictions, paths, is_multiclass, digits, rows):
    header = ["path", "class", "probability"] if is_multiclass else ["path", "ant", "'=bee"]
    assert list(build_rows(predictions, NAMES, paths, is_multiclass, digits)) == [header, *rows]
    assert [unescape_formula(name) for name in header[1:]] == (header[1:] if is_multiclass else NAMES)


@pytest.mark.parametrize(("name", "line"), [("p.csv", "a,1"), ("p.TSV", "a\t1"), ("p", "a,1")])
def test_separator_is_that_of_the_suffix(name, line, tmp_path):
    write_rows(tmp_path / "new" / name, [["a", "1"]])
    assert (tmp_path / "new" / name).read_bytes() == f"{line}\r\n".encode()


def test_rows_that_fail_leave_no_file(tmp_path):
    def rows():
        yield ["a"]
        raise KeyError

    with pytest.raises(KeyError):
        write_rows(tmp_path / "p.csv", rows())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "overwrite", "refusal"),
    [
        ("new.csv", False, None),
        ("deep/new.csv", False, None),
        ("old.csv", True, None),
        ("old.csv", False, "exists; name another file, or to overwrite it: `predictions.overwrite` true"),
        ("folder", True, "is a folder, not a file"),
        ("old.csv/deep/new.csv", True, "cannot be written (Not a directory); name another file"),
    ],
)
def test_target_that_exists_or_cannot_be_written_is_refused(name, overwrite, refusal, tmp_path):
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    assert check_target(path, overwrite) == (refusal and f"{path} {refusal}")
    assert (tmp_path / "old.csv").read_text() == "old"
    assert not is_device(path)


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout", "/dev/fd/17"])
def test_devices_are_written_in_place(name, tmp_path):
    assert is_device(type(tmp_path)(name))
