import csv
import pickle
import sys
from pathlib import Path

import pytest
import torch
import yaml
from image_files import save_photo
from lightning.pytorch.loggers import CSVLogger
from small_runs import small_module, small_trainer

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageTableDataModule
from lit_ft.errors import UserError

SPEC = InputSpec(size=16, resize=20)
COLORS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}


@pytest.fixture
def table(photo_root):
    """Writes a table beside the photos, of rows or of columns from the number and the class of each photo."""

    def write(rows=None, name="t.csv", **columns):
        path = photo_root / name
        if rows is None:
            photos = [(kind, i) for i in range(10) for kind in COLORS]
            cells = [[f"{kind}/{i}.png", *(str(make(kind, i)) for make in columns.values())] for kind, i in photos]
            rows = [["path", *columns], *cells]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",").writerows(rows)
        return str(path)

    return write


def kind_of(kind, i):
    return kind


def part_of(kind, i):
    return ["train", "val", "test"][max(0, i - 7)]


def numbers_of(data, split):
    return torch.tensor([[float(path[-5])] for path in paths_of(data, split)], dtype=torch.float64)


def make(path, **options):
    data = ImageTableDataModule(path, num_workers=0, spec=SPEC, augment="none", **options)
    data.setup()
    return data


def paths_of(data, split):
    return [str(p) for p in data.splits[split].paths]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_classes_of_a_table(table, name):
    data = make(table(label=kind_of, name=name), batch_size=8)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.counts() == {"train": [8] * 3, "val": [2] * 3}
    assert data.sizes() == {"train": 24, "val": 6}
    for images, targets in (*data.train_dataloader(), *data.val_dataloader()):
        assert images.float().mean((2, 3)).argmax(1).equal(targets)


def test_bom_blank_lines_and_spaces_do_no_harm(table, photo_root):
    path = photo_root / "b.csv"
    path.write_bytes(b"\xef\xbb\xbfpath, label\r\nant/0.png, ant\r\n\r\nant/1.png,ant \nbee/0.png,bee\nbee/1.png,bee\n")
    data = make(str(path), val_fraction=0.5)
    assert data.class_names == ["ant", "bee"]
    assert data.sizes() == {"train": 2, "val": 2}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(("mark", "name"), [(";", "b.csv"), ("\t", "b.csv"), (",", "b.tsv"), ("|", "b.csv")])
def test_other_separators_and_encodings_are_found_out(photo_root, mark, name, encoding):
    rows = ["path,label", *(f"{kind}/{i}.png,{kind}" for kind in ("ant", "bee") for i in range(2))]
    (photo_root / name).write_text("\r\n".join(rows).replace(",", mark), encoding)
    data = make(str(photo_root / name), val_fraction=0.5)
    assert (data.class_names, data.sizes()) == (["ant", "bee"], {"train": 2, "val": 2})


def test_table_that_a_model_is_tested_on_has_its_rows_in_the_order_of_the_classes_of_the_model(table, photo_root):
    tested = {"tested_classes": ["dog", "cat", "bee", "ant"], "shots": 1, "group_column": "patient"}
    data = make(table(label=kind_of), **tested)
    assert data.sizes() == {"train": 0, "test": 30}
    names = [data.class_names[k] for k in data.splits["test"].targets.tolist()]
    assert names == [Path(path).parent.name for path in paths_of(data, "test")]
    with pytest.warns(UserWarning, match=r"27 of 30 rows are not tested, as their split is not test"):
        assert make(table(label=kind_of, split=part_of), **tested).sizes() == {"train": 0, "test": 3}
    no_test = table(label=kind_of, split=lambda k, i: "val")
    assert make(no_test, split_column="split", **tested).sizes() == {"train": 0, "test": 30}
    with pytest.raises(
        UserError, match=r"data.split_column: unknown column of .* 'fold' \(choose from path, label, split\)"
    ):
        make(no_test, split_column="fold", **tested)
    with pytest.raises(UserError, match=r"10 of 30 rows of .* have a label that the model does not know: row 2 'ant'"):
        make(table(label=kind_of), tested_classes=["bee", "cat"])


def test_tested_labels_are_those_of_the_model(table):
    path = table(labels=lambda k, i: "b|a" if i else "")
    data = make(path, task="multilabel", label_columns=["labels"], tested_classes=["a", "x", "b"], fraction=0.5)
    assert data.splits["test"].targets.sum(0).tolist() == [27, 0, 27]


def test_whole_numbers_are_in_the_order_of_numbers(table):
    numbers = {"ant": 10, "bee": 9, "cat": -1}
    data = make(table(age=lambda kind, i: numbers[kind]), label_columns=["age"])
    assert data.class_names == ["-1", "9", "10"]
    assert data.splits["val"].targets.tolist().count(0) == 2


def test_splits_by_column(table):
    names = {"train": "training", "val": "Validation", "test": "test"}
    data = make(table(label=kind_of, fold=lambda k, i: names[part_of(k, i)]), split_column="fold")
    assert data.counts() == {"train": [8] * 3, "val": [1] * 3, "test": [1] * 3}
    assert paths_of(data, "val")[0].endswith("ant/8.png")


def test_column_called_split_is_one_without_being_named(table):
    assert make(table(label=kind_of, split=part_of)).sizes() == {"train": 24, "val": 3, "test": 3}
    # what is not in the table is split off
    some = make(table(label=kind_of, split=lambda k, i: part_of(k, min(i, 8))), test_fraction=0.25)
    assert some.sizes() == {"train": 18, "val": 6, "test": 6}


def test_paths_start_from_the_table_or_from_root_or_are_absolute(table, photo_root, tmp_path):
    rows = [["path", "label"], *([f"{k}/{i}.png", k] for k in ("ant", "bee") for i in range(2))]
    rows.append([str(photo_root / "bee" / "2.png"), "bee"])
    path = tmp_path / "elsewhere.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    data = make(str(path), root=str(photo_root), val_fraction=0.4)
    assert sorted(paths_of(data, "train") + paths_of(data, "val"))[-1] == str(photo_root / "bee" / "2.png")
    with pytest.raises(UserError, match=rf"4 of 5 rows of .* name no file: row 2 '{tmp_path}/ant/0.png'"):
        make(str(path))


def test_several_columns_of_marks(table):
    path = table(warm=lambda k, i: int(k == "ant"), even=lambda k, i: ["0.0", "True"][i % 2 == 0], all=lambda k, i: 1)
    data = make(path, task="multilabel", label_columns=["warm", "even", "all"], batch_size=30)
    assert data.class_names == ["warm", "even", "all"]
    assert sum(torch.tensor(n) for n in data.counts().values()).tolist() == [10, 15, 30]
    assert data.sizes() == {"train": 24, "val": 6}
    images, targets = next(iter(data.train_dataloader()))
    assert (targets.shape, targets.dtype) == ((24, 3), torch.int64)
    assert (images.float().mean((2, 3)).argmax(1) == 0).long().equal(targets[:, 0])


@pytest.mark.parametrize(
    ("mark", "label"), [("|", "no finding"), (";", "no finding"), (" ", "none"), (", ", "no finding"), (",", "none")]
)
def test_one_column_of_labels(table, tmp_path, mark, label):
    path = table(labels=lambda k, i: mark.join(["b", "a"]) if i == 3 else label if i < 9 else "")
    data = make(path, task="multilabel", label_columns=["labels"], split_seed=3)
    assert data.class_names == ["a", "b", label]
    assert sum(torch.tensor(n) for n in data.counts().values()).tolist() == [3, 3, 24]
    assert sorted(map(tuple, torch.cat([data.splits[s].targets for s in ("train", "val")]).tolist()))[0] == (0, 0, 0)


@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        (["cat, dog", "cat", "dog", ""], {}, {"cat": 2, "dog": 2}),
        (["cat,dog", "no finding", "dog", "dog"], {}, {"cat": 1, "dog": 3, "no finding": 1}),
        (["cat;dog, big", "cat", "", ""], {}, {"cat": 2, "dog, big": 1}),
        (['["cat", "dog"]', '["cat"]', "[]", ""], {}, {"cat": 2, "dog": 1}),
        (['["a|b", "x, y"]', '["a|b"]', '["x, y"]', '["\\u732b"]'], {}, {"a|b": 2, "x, y": 2, "\u732b": 1}),
        (["['cat', 'dog']", "['cat']", "[]", '["dog\'s"]'], {}, {"cat": 2, "dog": 1, "dog's": 1}),
        (["[1, 2]", "[10]", "[2]", "[]"], {}, {"1": 1, "2": 2, "10": 1}),
        (["cat / dog", "cat", "no finding", "dog"], {"label_separator": "/"}, {"cat": 2, "dog": 2, "no finding": 1}),
        (["a, b | c", "c", "a, b", "c"], {"label_separator": "|"}, {"a, b": 2, "c": 3}),
        (["no finding", "cat", "dog", "cat"], {"label_separator": "|"}, {"cat": 2, "dog": 1, "no finding": 1}),
        (["cat  dog", "cat", "dog", "cat"], {"label_separator": " "}, {"cat": 3, "dog": 2}),
        (["[x]|[y]", "[x]", "[y]", "[y]"], {}, {"[x]": 2, "[y]": 3}),
    ],
)
def test_cells_of_several_labels(table, cells, options, expected):
    path = table([["path", "label", "split"], *([f"ant/{i}.png", cell, "train"] for i, cell in enumerate(cells))])
    data = make(path, task="multilabel", **options)
    names = data.class_names
    found = torch.cat([data.splits[split].targets for split in ("train", "val")]).sum(dim=0)
    assert dict(zip(names, found.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (["['cat', 'dog']", "cat"], {}, "data.label_columns: 1 of 2 rows of .* are no list of labels, as others are"),
        (["['cat' 'dog']", "['cat']"], {}, r"data.label_columns: 1 of 2 .* are no list .*: row 2 .*\['cat' 'dog'\]"),
        (["[['cat']]", "['cat']"], {}, "data.label_columns: 1 of 2 rows of .* are no list of labels"),
        (["cat", "dog"], {"label_separator": ""}, "data.label_separator: '' is empty; change it or leave it out"),
        (["cat"], {"label_separator": "|", "task": "multiclass"}, r"data.label_separator: '\|' is for one column of"),
        (["['cat']", "['dog', 'cat']"], {"task": "multiclass"},
         "data.label_columns: 2 of 2 rows of .* have a list of labels: row 2 .*; for several labels an image: model"),
    ],
)  # fmt: skip
def test_mistakes_in_cells_of_several_labels(table, cells, options, message):
    path = table([["path", "label"], *([f"ant/{i}.png", cell] for i, cell in enumerate(cells))])
    with pytest.raises(UserError, match=f"^{message}"):
        make(path, **{"task": "multilabel", **options})


@pytest.mark.parametrize("cell", ["[" * 60_000 + "]" * 60_000, "[" + "-" * 60_000 + "1]"])
def test_cell_that_is_nested_without_end_is_no_list(table, cell):
    path = table([["path", "label"], ["ant/0.png", cell], ["ant/1.png", "['cat', 'dog']"]])
    with pytest.raises(UserError, match=r"^data.label_columns: 1 of 2 rows of .* are no list of labels") as told:
        make(path, task="multilabel")
    assert len(str(told.value)) < 500


def test_lists_of_parquet(photo_root):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "path": [f"ant/{i}.png" for i in range(5)],
        "label": [["cat", "dog, big"], ["cat"], [], None, ["dog, big", None, "x|y"]],
    }
    parquet.write_table(arrow.table(columns), photo_root / "t.parquet")
    data = make(str(photo_root / "t.parquet"), task="multilabel", split_seed=1)
    assert data.class_names == ["cat", "dog, big", "x|y"]
    found = {path[-5]: row for split in ("train", "val") for path, row in
             zip(paths_of(data, split), data.splits[split].targets.tolist(), strict=True)}  # fmt: skip
    assert found == {"0": [1, 1, 0], "1": [1, 0, 0], "2": [0, 0, 0], "3": [0, 0, 0], "4": [0, 1, 1]}
    parquet.write_table(arrow.table(columns).slice(0, 3), photo_root / "t.parquet")
    with pytest.raises(UserError, match=r"2 of 3 rows of .* have a list of labels: row 1 '\[\"cat"):
        make(str(photo_root / "t.parquet"), task="multiclass", val_fraction=0.4)


def test_numbers(table):
    path = table(age=lambda k, i: i / 3, weight=lambda k, i: f"-{i}e3")
    data = make(path, task="regression", label_columns=["age", "weight"], batch_size=30)
    assert data.class_names == ["age", "weight"]
    assert data.counts() == {"train": [24, 24], "val": [6, 6]}
    images, targets = next(iter(data.train_dataloader()))
    assert targets.dtype == torch.float64
    numbers = (25 - images.amax((1, 2, 3)).double() / 10).round()  # a photo's brightness tells it
    torch.testing.assert_close(targets, torch.stack([numbers / 3, numbers * -1000], dim=1))


def test_numbers_keep_more_digits_than_float32_has(table):
    stamps = [1_700_000_000 + 13 * i for i in range(10)]
    data = make(table(stamp=lambda k, i: stamps[i]), task="regression", label_columns=["stamp"])
    found = {int(number) for number in data.train_targets()}
    assert found <= set(stamps)
    assert len(found) > 5
    assert [float(cell) for (cell,) in data.label_cells(data.train_targets())] == data.train_targets()[:, 0].tolist()


def test_groups_stay_together(table):
    data = make(table(label=kind_of, patient=lambda k, i: f"p{i // 2}"), group_column="patient", test_fraction=0.2)
    assert data.counts() == {"train": [6] * 3, "test": [2] * 3, "val": [2] * 3}
    groups = [{p[-5] for p in paths_of(data, s)} for s in ("train", "val", "test")]
    assert sorted(int(i) // 2 for i in groups[1]) in ([n, n] for n in range(5))
    assert len(set.union(*groups)) == 10 == sum(map(len, groups))


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_folds_of_each_task_keep_groups_together(table, task):
    labels = {"multiclass": kind_of, "multilabel": lambda k, i: f"{k};x" if i % 2 else k, "regression": lambda k, i: i}
    path = table(label=labels[task], split=part_of, patient=lambda k, i: f"p{i // 3}")
    folds = [make(path, task=task, folds=3, fold=fold, group_column="patient") for fold in (1, 2, 3)]
    numbers = [{path[-5] for path in paths_of(data, "val")} for data in folds]
    assert sorted(numbers, key=min) == [{"0", "1", "2"}, {"3", "4", "5"}, {"6", "7", "8"}]  # the last with one of val
    for data, held in zip(folds, numbers, strict=True):
        assert {path[-5] for path in paths_of(data, "train")} == set("012345678") - held
        assert [path[-5] for path in paths_of(data, "test")] == ["9"] * 3
        assert (
            data.splits["val"].targets.shape[1:] == ({"multiclass": (), "multilabel": (4,), "regression": (1,)}[task])
        )


def test_group_in_two_given_splits_is_refused(table):
    path = table(label=kind_of, split=part_of, patient=lambda k, i: "p" if i in (0, 9) else f"p{i}")
    with pytest.raises(UserError, match=r"^data.group_column: group 'p' is both in train and in test; move all its"):
        make(path, group_column="patient")


def test_rows_that_come_twice_count_once(table):
    photos = [f"{k}/{i}.png" for k in ("ant", "bee") for i in range(6)]
    rows = [["path", "label"], *([path, path[:3]] for path in photos), ["bee/../ant/0.png", "ant"]]
    with pytest.warns(UserWarning, match=r"t.csv names 1 images again, which count once"):
        data = make(table(rows))
    assert data.sizes() == {"train": 10, "val": 2}


def test_parquet(table, photo_root):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    photos = [(kind, i) for kind in COLORS for i in range(10)]
    path = photo_root / "t.parquet"
    columns = {
        "path": [f"{k}/{i}.png" for k, i in photos],
        "label": [i % 3 + 9 for _, i in photos],
        "x": [i / 3 for _, i in photos],
    }
    parquet.write_table(arrow.table(columns), path)
    assert make(str(path)).class_names == ["9", "10", "11"]
    data = make(str(path), task="regression", label_columns=["x"])
    torch.testing.assert_close(data.splits["val"].targets, numbers_of(data, "val") / 3)
    columns["label"][4] = None
    parquet.write_table(arrow.table(columns), path)
    with pytest.raises(UserError, match=r"^data.label_columns: 1 of 30 rows of .* have no label: row 5; fix them$"):
        make(str(path))
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"^data.table: .*t.parquet cannot be read \(.*\)$"):
        make(str(path))


def test_parquet_without_pyarrow(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"^data.table: .*t.parquet needs pyarrow; run: pip install 'lit_ft\["):
        make(table(label=kind_of, name="t.parquet"))


def test_table_can_be_pickled(table):
    data = make(table(label=kind_of, patient=lambda k, i: i), group_column="patient")
    assert paths_of(pickle.loads(pickle.dumps(data)), "val") == paths_of(data, "val")


def cells(change):
    """Thirty rows of which some are changed: by line as spreadsheets count, to a list of fields."""
    rows = [["path", "label"], *([f"{k}/{i}.png", k] for i in range(10) for k in COLORS)]
    return [change.get(number, row) for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({1: ["file", "label"]}, {}, r"data.path_column: unknown column of \S+ 'path' .*choose from file, label"),
        ({}, {"path_column": "pat"}, r"data.path_column: unknown column of \S+ 'pat'; nearest: path"),
        ({}, {"label_columns": ["lable"]}, "data.label_columns: unknown column of .* 'lable'; nearest: label"),
        ({}, {"split_column": "fold"}, "data.split_column: unknown column of .* 'fold'"),
        ({}, {"group_column": "patient"}, "data.group_column: unknown column of .* 'patient'"),
        ({1: ["path", "path"]}, {}, "data.table: .* has the column 'path' twice"),
        (
            {n: ["x.png", "ant"] for n in (2, 5, 6, 9)}, {},
            "data.table: 4 of 30 rows of .* name no file: row 2 '.*/x.png', row 5 '.*', row 6 '.*/x.png' and 1 more; "
            "fix them, or name the folder that they start from: data.root",
        ),
        ({3: ["ant", "ant"]}, {}, "data.table: 1 of 30 rows of .* name no file: row 3 "),
        ({4: ["", "ant"]}, {}, "data.path_column: 1 of 30 rows of .* have no path: row 4; fix them"),
        ({4: ["ant/0.png", " "]}, {}, "data.label_columns: 1 of 30 rows of .* have no label: row 4; fix them"),
        ({31: ["cat/9.png"]}, {}, "data.table: .* has 2 columns, but row 31 has 1; quote"),
        ({7: ["ant/2.png", "ant", "x"]}, {}, "data.table: .* has 2 columns, but row 7 has 3; quote"),
        (
            {6: ["ant/0.png", "cat"]}, {},
            "data.table: .* has .*/ant/0.png twice, with label 'ant' in row 2 and 'cat' in row 6; leave one out",
        ),
        ({}, {"task": "regression"}, "data.label_columns: 30 of 30 rows of .* have no number: row 2 'ant',"),
        (
            {n: ["ant/0.png", "nan" if n == 8 else "3.5"] for n in range(2, 32)}, {"task": "regression"},
            "data.label_columns: 1 of 30 rows of .* have no number: row 8 'nan'; fix them",
        ),
        (
            {n: ["ant/0.png", "-1e39" if n == 8 else "3.5"] for n in range(2, 32)}, {"task": "regression"},
            "data.label_columns: 1 of 30 rows of .* have a number beyond 3.4e38: row 8 '-1e39'; scale the column",
        ),
        (
            {}, {"task": "multilabel", "label_columns": ["label", "path"]},
            "data.label_columns: 30 of 30 rows of .* have a label other than 0 and 1: row 2 'ant'",
        ),
        ({n: [f"ant/{n % 10}.png", "ant"] for n in range(2, 32)}, {},
         "data.label_columns: two labels are needed to tell apart, but the training images have only 'ant'"),
        ({}, {"split_column": "label"}, "data.split_column: 30 of 30 rows of .* are of an unknown split: row 2 "),
        ({}, {"group_column": "path", "root": "nowhere"}, "data.root: nowhere does not exist"),
        ({}, {"task": "multi"}, "data.task: unknown task 'multi'; nearest: multi"),
        ({}, {"label_columns": ["label", "path"]},
         "data.label_columns: multiclass takes one column, got label, path; for several: model.task "),
        ({}, {"label_columns": [], "task": "regression"}, "data.label_columns: regression takes at least one column"),
        ({}, {"label_columns": ["path", "label", "label"], "task": "regression"},
         "data.label_columns: 'label' is given twice; leave one out"),
        ({}, {"cache": " "}, "data.cache: ' ' names no folder; name one, or leave the option out"),
        ({4: [], 5: [], 7: ["ant/0.png", " "]}, {}, "data.label_columns: 1 of 28 rows of .* have no label: row 7;"),
        ({3: [], 6: ["ant/2.png", "ant", "x"]}, {}, "data.table: .* has 2 columns, but row 6 has 3; quote"),
        ({1: [], 2: ["path", "label"], 3: ["ant/0.png", " "]}, {},
         "data.label_columns: 1 of 29 rows of .* have no label: row 3;"),
        ({n: [f"ant/{n}.png;ant;x"] if n > 1 else ["path;label"] for n in range(1, 32)}, {},
         "data.table: .*t.csv has 2 columns, but row 2 has 3; quote fields with semicolons in them"),
    ],
)  # fmt: skip
def test_mistakes_in_a_table(table, rows, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        make(table(cells(rows)), **options)


@pytest.mark.parametrize("given", ["lable", "[lable]"])
def test_one_label_column_may_be_a_plain_word(refused, table, given):
    data = ("--data", "ImageTableDataModule", "--data.table", table(label=kind_of))
    line = refused("check", *data, "--data.label_columns", given)
    assert "--data.label_columns: unknown column of " in line
    assert " 'lable'; nearest: label " in line


def test_table_that_is_not_named(refused):
    line = "lit-ft: --data.table: is missing; name the CSV, TSV or Parquet file"
    assert refused("check", "--data", "ImageTableDataModule") == line


@pytest.mark.parametrize(
    ("split", "group", "message"),
    [
        (lambda k, i: "tset" if i == 9 else "train", None,
         "data.split_column: 3 of 30 rows of .* are of an unknown split: row 29 'tset', .*; call them train, val"),
        (lambda k, i: "val", None, r"data.split_column: \S+ has no rows of train"),
        (lambda k, i: "val" if k == "bee" else "train", None,
         "data.label_columns: 10 of 30 rows of .* have a label that no training image has: row 3 'bee',"),
        (lambda k, i: "train", lambda k, i: "p" if i else "", "data.group_column: 3 of 30 rows of .* have no group"),
        (lambda k, i: "train", lambda k, i: "p", "data.val_fraction: 6 of 30 images in 1 group.s. cannot be"),
        (lambda k, i: "train", kind_of, "data.val_fraction: 6 of 30 images in 3 group.s. cannot be held out"),
    ],
)  # fmt: skip
def test_mistakes_in_splits_and_groups(table, split, group, message):
    columns = {"patient": group} if group else {}
    with pytest.raises(UserError, match=f"^{message}"):
        make(table(label=kind_of, split=split, **columns), group_column="patient" if group else None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; it needs a line with the names of its columns, and a row an image"),
        (b"path,label\n", "is empty; it needs"),
        ("path,label\nant/0.png,\u00e4".encode("latin-1"), "is not in UTF-8; save it in that encoding$"),
        ("path,label\nant/0.png,ant".encode("utf-16")[:-1], "is not in UTF-8; "),
        (b'path,label\n"ant/0.png,' + b"x" * 200000, r"cannot be read \(field larger than field limit"),
    ],
)
def test_files_that_are_no_table(photo_root, content, message):
    (photo_root / "bad.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"^data.table: .*bad.csv {message}"):
        make(str(photo_root / "bad.csv"))


def test_table_that_is_not_there(photo_root, monkeypatch):
    (photo_root / "labels.csv").touch()
    with pytest.raises(UserError, match=r"^data.table: .*lables.csv does not exist; nearest: labels.csv$"):
        make(str(photo_root / "lables.csv"))
    with pytest.raises(UserError, match=r"^data.table: .*photos is a folder, not a file$"):
        make(str(photo_root))

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbidden)
    with pytest.raises(UserError, match=r"^data.table: .*labels.csv cannot be read \(Permission denied\)$"):
        make(str(photo_root / "labels.csv"))


def test_table_may_lie_in_the_shared_folder(table, photo_root, monkeypatch, tmp_path):
    table(label=kind_of)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_FT_DATA", str(photo_root))
    assert make("t.csv").sizes() == {"train": 24, "val": 6}
    save_photo(tmp_path / "unused.png")


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"label": kind_of}, {}),
        ({"kind": kind_of, "who": lambda k, i: i // 2}, {"label_columns": ["kind"], "group_column": "who"}),
        ({"label": kind_of, "fold": part_of}, {"split_column": "fold"}),
        ({"label": lambda k, i: i % 2 + 9}, {"test_fraction": 0.3}),
        ({"b": lambda k, i: i % 2, "a": lambda k, i: 1}, {"task": "multilabel", "label_columns": ["b", "a"]}),
        ({"label": lambda k, i: "x y|z" if i else ""}, {"task": "multilabel"}),
        ({"label": lambda k, i: f"{k} k|"}, {"task": "multilabel"}),
        ({"label": lambda k, i: f"{k}, k|x"}, {"task": "multilabel", "label_separator": ", "}),
        ({"label": lambda k, i: f"{k} k" if i else f"{k} k/x"}, {"task": "multilabel", "label_separator": "/"}),
        ({"label": lambda k, i: f"['{k}|k', 'x, y']" if i else "[]"}, {"task": "multilabel"}),
        ({"label": lambda k, i: f'["{k}+k", "x"]'}, {"task": "multilabel", "label_separator": "+"}),
        ({"label": lambda k, i: i / 7}, {"task": "regression"}),
    ],
)
def test_split_that_was_written_is_read_again(table, tmp_path, columns, options):
    """With the options of the first run, the same images in the same order, of the same classes."""
    first = make(table(**columns), **options, split_seed=5)
    first.write_split(tmp_path / "split.csv")
    again = make(str(tmp_path / "split.csv"), **options, shots=None, split_seed=9)
    assert again.class_names == first.class_names
    assert again.splits.keys() == first.splits.keys()
    for split, images in first.splits.items():
        assert paths_of(again, split) == paths_of(first, split)
        assert again.splits[split].targets.equal(images.targets)
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 31


def test_split_has_what_shots_leave_out(table, tmp_path):
    few = make(table(label=kind_of), shots=2)
    assert few.sizes() == {"train": 6, "val": 6}
    few.write_split(tmp_path / "split.csv")
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 31
    again = make(str(tmp_path / "split.csv"), shots=2)
    assert paths_of(again, "train") == paths_of(few, "train")


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_label_that_says_nan_is_warned_of(table, task):
    path = table(label=lambda k, i: "nan" if i == 3 else k + "|" * (task == "multilabel"))
    with pytest.warns(UserWarning, match=r"^`data.label_columns`: 'nan' is taken for a class; if it stands for a miss"):
        data = make(path, task=task)
    assert data.class_names == ["ant", "bee", "cat", "nan"]


def test_labels_in_two_forms_of_unicode_are_told(table):
    path = table(label=lambda k, i: ["caf\u00e9", "cafe\u0301"][i % 2])
    with pytest.raises(UserError, match=r"^data.label_columns: the class 'caf.+' comes in two forms of Unicode, "):
        make(path)


def test_table_that_does_not_fit_into_memory_is_told_in_a_line(photo_root, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    (photo_root / "big.csv").write_text("path,label\nant/0.png,ant\n")
    monkeypatch.setattr("lit_ft.data.tables.tables.csv.reader", full)
    with pytest.raises(UserError, match=r"^data.table: .*big.csv holds more rows than fit into memory$"):
        ImageTableDataModule(str(photo_root / "big.csv")).setup()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_split_with_names_that_a_spreadsheet_would_run_is_read_back(tmp_path, task):
    names = ["=1+2", "'=1+2", "@b", "-1", "\u2019a"]
    column = "=label"
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "'=label", "patient"])
        for name in names:
            for i in range(4):
                save_photo(tmp_path / "=x" / f"{name.encode().hex()}{i}.png")
                # Where spreadsheets write text that begins so, they put an apostrophe before it, too.
                writer.writerow(
                    [f"=x/{name.encode().hex()}{i}.png", f"'{name}" if name[0] in "='@" else name, f"+p{i}"]
                )
    options = {"label_columns": column, "group_column": "patient", "task": task, "val_fraction": 0.25}
    data = ImageTableDataModule(str(tmp_path / "t.csv"), **options)
    data.setup()
    assert sorted(data.class_names) == sorted(names)
    data.write_split(tmp_path / "split.csv")
    with (tmp_path / "split.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]
    again = ImageTableDataModule(str(tmp_path / "split.csv"), **options)
    again.setup()
    assert again.class_names == data.class_names
    assert set(again.group_numbers) == set(data.group_numbers) == {f"+p{i}" for i in range(4)}
    for split in ("train", "val"):
        assert list(again.splits[split].paths.absolute()) == list(data.splits[split].paths.absolute())
        assert again.splits[split].targets.equal(data.splits[split].targets)


def test_path_that_begins_with_an_apostrophe_is_that_path(tmp_path):
    for name in ("'=1.png", "=2.png", "3.png", "4.png"):
        save_photo(tmp_path / name)
    rows = ["path,label", *(f"{name},{label}" for name, label in [("'=1.png", "a"), ("=2.png", "b")] * 1)]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "3.png,a", "4.png,b"]))
    data = ImageTableDataModule(str(tmp_path / "t.csv"), val_fraction=0.5)
    data.setup()
    found = sorted(path.name for split in ("train", "val") for path in data.splits[split].paths)
    assert found == ["'=1.png", "3.png", "4.png", "=2.png"]


@pytest.mark.filterwarnings("ignore")
def test_loggers_get_the_hyperparameters_that_a_subclass_saves(table, tmp_path):
    class Own(ImageTableDataModule):
        def __init__(self, extra, **options):
            super().__init__(**options)
            self.save_hyperparameters()

    data = Own(3, table=table(label=kind_of), num_workers=0, augment="none")
    logger = CSVLogger(tmp_path)
    small_trainer(1, logger=logger, limit_train_batches=1, limit_val_batches=0).fit(small_module(), datamodule=data)
    logger.save()
    saved = yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())
    assert (saved["extra"], saved["augment"], saved["task"]) == (3, "none", "multiclass")
