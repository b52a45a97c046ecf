"""The folder of a run, whose paths no other file knows."""

import ast
import os
from pathlib import Path

import pytest

import lit_ft
from lit_ft.errors import UserError
from lit_ft.evaluation.run_files import read_config
from lit_ft.runs import Run, find_best_checkpoint, find_checkpoint


def test_checkpoint_is_the_one_of_a_named_config_or_the_newest(tmp_path):
    for name, age_seconds in (("version_0", 20), ("version_1", 10)):
        path = Run(tmp_path / name).last
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_seconds,) * 2)
    older, newer = Run(tmp_path / "version_0"), Run(tmp_path / "version_1")
    assert find_checkpoint(str(tmp_path), "last") == str(newer.last)
    assert find_checkpoint(str(tmp_path), "last", [older.config]) == str(older.last)
    assert find_checkpoint(str(tmp_path), "last", ["quickstart.yaml"]) == str(newer.last)  # a recipe has none beside it
    with pytest.raises(UserError, match=rf"^ckpt_path: there is no {tmp_path}/\*/checkpoints/best.ckpt$"):
        find_checkpoint(str(tmp_path), "best")


def test_folder_of_runs_is_refused_with_the_newest_of_them(tmp_path):
    for name, age_seconds in (("one/version_0", 20), ("two/version_0", 10), ("two/version_1", 30)):
        path = Run(tmp_path / name).checkpoint("best")
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (path.stat().st_mtime - age_seconds,) * 2)
    one, two = tmp_path / "one", tmp_path / "two"
    assert find_best_checkpoint(two / "version_1") == Run(two / "version_1").checkpoint("best")
    assert find_best_checkpoint(str(path)) == path
    for folder, newest in ((one, one), (two, two), (tmp_path, two)):
        text = f"ckpt_path: {folder} is no run, but a folder of runs; name one, the newest is {newest}/version_0"
        with pytest.raises(UserError, match=f"^{text}$"):
            find_best_checkpoint(folder)
    assert find_best_checkpoint(Run(two / "version_1").checkpoints) == Run(two / "version_1").checkpoint("best")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=rf"^ckpt_path: {tmp_path}/photos is no run, as it has no folder checkpoints"):
        find_best_checkpoint(tmp_path / "photos")
    for other, text in (
        (two, f"is no run, but a folder of runs; name one, the newest is {two}/version_0"),
        (tmp_path / "photos", "is not the folder of a run, as it has no config.yaml"),
        (tmp_path / "none", "does not exist; name the folder of a run"),
    ):
        with pytest.raises(UserError, match=f"^{other}: {text}$"):
            read_config(Run(other))
    Run(one / "version_0").checkpoint("best").unlink()  # of a run that was interrupted, whose others are then named
    assert find_best_checkpoint(one / "version_0") == Run(one / "version_0").checkpoint("best")


def test_folds_are_runs_within_that_of_all(tmp_path):
    whole = Run(tmp_path)
    assert not whole.has_folds()
    fold = whole.fold(2)
    assert (fold.folder, fold.whole, whole.whole) == (tmp_path / "fold_2", whole, None)
    fold.folder.mkdir()
    assert whole.has_folds()
    assert not fold.has_folds()


@pytest.mark.long
def test_no_other_file_joins_the_paths_of_a_run():
    run, joined = Run(Path()), set()
    paths = [path.fget(run) for path in vars(Run).values() if isinstance(path, property)]
    names = {path.name for path in (*paths, run.checkpoint("best"))}
    assert {"best.ckpt", "checkpoints", "config.yaml", "split.csv"} < names
    package = Path(lit_ft.__file__).parent
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and Path(node.value).name in names:
                joined.add((name, node.value))
            if isinstance(node, ast.Attribute) and node.attr == "log_dir":
                joined.add((name, ".log_dir"))
    assert {name for name in joined if name[0] != "runs.py"} == {
        ("training/trainer.py", ".log_dir"),  # where it is defined
        # Of torch's own folder of downloads.
        ("backbones/sources/torchvision.py", "checkpoints"),
        ("backbones/weights/pretrained.py", "checkpoints"),
    }
