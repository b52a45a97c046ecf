"""Tests on folders and tables with the images of a run, or others."""

import json
from pathlib import Path

import pytest

from lit_ft.cli.config.checkpoint import add_saved_data
from lit_ft.errors import UserError


def test_model_of_photos_in_folders_is_tested_on_all_rows_of_a_table(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("path,label\nx.png,a\n")
    content = {
        "hyper_parameters": {"classes": ["a", "b"]},
        "run_options": {"data": "lit_ft.data.ImageFolderDataModule"},
        "datamodule_hyper_parameters": {"root": "photos", "classes_file": "names.json"},
    }
    found = json.loads(add_saved_data("test", [checkpoint(content), "--data.table", "t.csv"])[1])
    assert found == {"class_path": "lit_ft.data.ImageTableDataModule", "init_args": {"tested_classes": ["a", "b"]}}


def test_copy_of_the_photos_of_a_run_is_tested_by_its_own_split(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"{name}/{i}.jpg" for name in ("ant", "bee") for i in range(4)]
    content = {
        "hyper_parameters": {"classes": ["ant", "bee"]},
        "run_options": {"data": "lit_ft.data.ImageFolderDataModule"},
        "datamodule_hyper_parameters": {"root": "gone"},
    }
    Path("run/checkpoints").mkdir(parents=True)
    Path(checkpoint(content)).rename("run/checkpoints/best.ckpt")
    Path("run/config.yaml").write_text("")
    Path("run/split.csv").write_text("path,label,split\n" + "".join(f"gone/{name},x,train\n" for name in names))
    Path("gone/ant").mkdir(parents=True)
    Path("gone/ant/0.jpg").write_text("another size")
    for folder, kept in (("copy", 6), ("other", 5)):  # of which one is not the same
        for name in names[:kept]:
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).touch()
    for folder, all_tested in (("copy", False), ("other", True)):
        found = json.loads(add_saved_data("test", ["run", "--data.root", folder])[1])["init_args"]
        assert ("tested_classes" in found) == all_tested


def test_other_table_is_tested_whole_and_a_copy_by_its_own_split(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {
        "hyper_parameters": {"classes": ["ant", "bee"]},
        "run_options": {"data": "lit_ft.data.ImageTableDataModule"},
        "datamodule_hyper_parameters": {"table": "own/t.csv", "path_column": "file"},
    }
    for folder in ("run/checkpoints", "own", "moved", "new"):
        Path(folder).mkdir(parents=True)
    Path(checkpoint(content)).rename("run/checkpoints/best.ckpt")
    Path("run/config.yaml").write_text("")
    own, others = ([f"{name}/{i}.jpg" for i in range(4)] for name in ("a", "b"))
    Path("run/split.csv").write_text(
        "file,label,split\n" + "".join(f"{Path('own').resolve() / name},x,train\n" for name in own)
    )
    absolute = [str(Path("own").resolve() / name) for name in own]
    for folder, names, text in (("own", own, "1"), ("moved", own, "1"), ("new", own, "1"), ("new", others, "22")):
        for name in names:
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).write_text(text)
    for place, names, is_tested in (
        ("own/t.csv", others, False),  # the table itself, which was changed
        ("run/split.csv", None, False),
        ("moved/t.csv", own, False),
        ("new/t.csv", own[:2], True),  # a part of it
        ("new/t.csv", own[:3], False),
        ("new/t.csv", absolute, False),
        ("new/t.csv", own + others, True),
        ("new/t.csv", others, True),  # of the same names within their folder
        ("new/t.csv", [], True),
    ):
        if names is not None:
            Path(place).write_text("file,label\n" + "".join(f"{name},x\n" for name in names or ["z"]))
        found = json.loads(add_saved_data("test", ["run", "--data.table", place])[1])["init_args"]
        assert found.get("tested_classes") == (["ant", "bee"] if is_tested else None), (place, names)
        assert "tested_classes" not in json.loads(add_saved_data("validate", ["run", "--data.table", place])[1])
    with pytest.raises(UserError, match=r"data.table: gone.csv does not exist"):
        add_saved_data("test", ["run", "--data.table", "gone.csv"])


def test_split_column_of_the_run_that_the_tested_table_lacks_is_left_out_with_a_warning(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = {"table": "own.csv", "split_column": "fold"}
    path = checkpoint(
        {
            "hyper_parameters": {"classes": ["a", "b"]},
            "run_options": {"data": "lit_ft.data.ImageTableDataModule"},
            "datamodule_hyper_parameters": options,
        }
    )

    def settled(columns, *given):
        Path("new.csv").write_text(f"{columns}\n{columns}\n")
        args = json.loads(add_saved_data("test", [path, "--data.table", "new.csv", *given])[1])["init_args"]
        assert args["tested_classes"] == ["a", "b"]
        return args["split_column"]

    assert settled("path,label,fold") == "fold"
    with pytest.warns(UserWarning, match=r"new.csv has no column 'fold', .* so all of its rows are tested"):
        assert settled("path,label") is None
    with pytest.warns(UserWarning, match=r"new.csv has no column 'fold', .* so its column split counts"):
        assert settled("path,label,split") is None
    assert settled("path,label", "--data.split_column", "fold") == "fold"  # which the data module refuses
