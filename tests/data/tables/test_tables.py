from pathlib import Path

import pytest

from lit_ft.data.tables.tables import Columns, Table, read_row_splits, unique_rows
from lit_ft.errors import UserError


def table(**columns):
    return Table(Path("t.csv"), columns, range(2, 9))


@pytest.mark.parametrize(
    ("cells", "column", "others", "expected"),
    [
        ({"x": ["a", "b"]}, None, (), ["train", "train"]),
        ({"split": [" Training", "dev"]}, None, (), ["train", "val"]),
        ({"split": ["train", "dev"]}, None, ("split",), ["train", "train"]),  # which is a label column
        ({"part": ["testing", "train"]}, "part", (), ["test", "train"]),
    ],
)
def test_split_of_each_row(cells, column, others, expected):
    assert read_row_splits(table(**cells), column, others) == expected


def test_unknown_split_and_none_to_train_on_are_refused():
    with pytest.raises(UserError, match=r"1 of 2 rows of t.csv are of an unknown split: row 3 'all'; call them train"):
        read_row_splits(table(split=["train", "all"]), None, ())
    with pytest.raises(UserError, match=r"t.csv has no rows of train"):
        read_row_splits(table(split=["val", "test"]), None, ())


@pytest.mark.parametrize("is_tested", [False, True])
def test_split_column_that_a_table_lacks_is_refused(is_tested):
    with pytest.raises(UserError, match=r"^data.split_column: unknown column of t.csv 'fold'"):
        read_row_splits(table(split=["train", "test"]), "fold", (), is_tested)


def test_rows_of_the_same_image_count_once_and_must_agree():
    rows = table(label=["ant", "bee", "ant "])
    with pytest.warns(UserWarning, match=r"t.csv names 1 images again, which count once"):
        assert unique_rows(rows, ["a", "b", "a"], Columns()) == [0, 1]
    with pytest.raises(UserError, match=r"t.csv has a twice, with label 'ant' in row 2 and 'bee' in row 3; leave one"):
        unique_rows(rows, ["a", "a", "c"], Columns())


def test_image_that_is_named_in_full_and_from_here_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = table(label=["ant", "ant"], split=["train", "test"])
    with pytest.raises(UserError, match=r"twice, with split 'train' in row 2 and 'test' in row 3; leave one"):
        unique_rows(rows, ["a", str(tmp_path / "a")], Columns())
