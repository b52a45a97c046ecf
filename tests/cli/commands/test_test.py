"""``lit-ft test`` with an exported file, as a user runs it."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from exported_runs import CLASSES, write_run
from PIL import Image

from lit_ft.cli import main

ROOT = Path(os.environ.get("LIT_FT_DATA", ""))
FLOWERS = ROOT / "flowers5" / "val"
SQUEEZENET = ROOT / "weights" / "torchvision_squeezenet1_1.pth"

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run, its file, and labelled photos of the size of the network, which no CPU resizes otherwise than another."""
    folder = tmp_path_factory.mktemp("tested")
    run = write_run(folder)
    assert main(["export", str(run), str(folder / "model.onnx")]) == 0
    random = np.random.default_rng(1)
    for i in range(20):
        path = folder / "new" / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        low = random.integers(0, 100)
        Image.fromarray(random.integers(low, low + 155, (28, 28, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return folder


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_scores_and_tables_are_those_of_the_checkpoint(here, capsys):
    given = ["--data.root", str(here / "new")]
    assert main(["test", *given, str(here / "run")]) == 0  # at the end, where many put it
    by_checkpoint = capsys.readouterr().out
    assert main(["test", *given, str(here / "model.onnx")]) == 0
    printed = capsys.readouterr().out
    assert "Results        model_onnx_test_new/\n" in printed
    scores = [re.findall(r"test/(\w+) +(\d\.\d{4})\n", text) for text in (by_checkpoint, printed)]
    assert [name for name, _ in scores[0]] == ["acc", "f1", "loss", "precision", "recall"]
    results = Path("model_onnx_test_new")
    first, second = (json.loads((one / "metrics.json").read_text())["test_new"] for one in (here / "run", results))
    assert 0.2 < second["test/acc"] < 1
    for name in (f"test/{name}" for name, _ in scores[0]):
        assert second[name] == pytest.approx(first[name], rel=1e-4)
    assert second["intervals"].keys() == first["intervals"].keys() >= {"test/acc", "test/loss"}
    for name, ends in first["intervals"].items():
        assert second["intervals"][name] == pytest.approx(ends, rel=1e-4)
    for kind in ("per_class", "confusion"):
        assert read(results / f"{kind}_test_new.csv") == read(here / "run" / f"{kind}_test_new.csv")
    tables = [read(one / "predictions_test_new.csv") for one in (here / "run", results)]
    assert [row[:3] for row in tables[0]] == [row[:3] for row in tables[1]]
    numbers = [np.array([row[3:] for row in table[1:]], dtype=float) for table in tables]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-3, abs=1e-5)
    assert second["checkpoint"].endswith("/model.onnx")
    facts = {"split": "test", "images": 20, "data": str((here / "new").resolve())}
    assert facts.items() <= first.items()
    assert facts.items() <= second.items()


@pytest.mark.long
def test_results_are_not_replaced_unless_that_is_asked_for(here, capsys):
    given = ["test", str(here / "model.onnx"), "--data.root", str(here / "new")]
    assert main([*given, "--folder", "there"]) == 0
    before = Path("there/metrics.json").stat().st_mtime_ns
    assert main([*given, "--folder", "there"]) == 2
    wanted = "lit-ft: --folder: there has results; name another folder, or to replace them: --overwrite\n"
    assert capsys.readouterr().err.endswith(wanted)
    assert Path("there/metrics.json").stat().st_mtime_ns == before
    assert main(["test", "--overwrite", *given[2:], given[1], "--folder=there"]) == 0
    assert Path("there/metrics.json").stat().st_mtime_ns > before


def test_photos_of_some_classes_are_tested_and_others_told(here):
    shutil.copytree(here / "new" / CLASSES[1], Path("few/test", CLASSES[1]))
    means = r"test: no image of 1 of 2 classes \(ant\); they are left out of the means"
    with pytest.warns(UserWarning, match=f"few/test: no images of: {CLASSES[0]}$"), pytest.warns(match=means):
        assert main(["test", str(here / "model.onnx"), "--data.root", "few"]) == 0
    rows = read("model_onnx_test_few/per_class_test_few.csv")
    assert [row[:2] for row in rows] == [["class", "images"], [CLASSES[0], "0"], [CLASSES[1], "10"]]


def test_table_without_training_rows_is_tested_whole(here, capsys):
    paths = sorted((here / "new" / CLASSES[0]).iterdir())
    Path("rows.csv").write_text("path,label\n" + "".join(f"{path},{CLASSES[0]}\n" for path in paths))
    assert main(["test", str(here / "model.onnx"), "--data.table", "rows.csv", "--folder", "out"]) == 0
    assert len(read("out/predictions_test_rows.csv")) == 1 + len(paths)
    Path("rows.csv").write_text(f"path,label\n{paths[0]},cat\n")
    assert main(["test", str(here / "model.onnx"), "--data.table", "rows.csv", "--folder", "other"]) == 2
    wanted = r"--data.label_columns: 1 of 1 rows of rows.csv have a label that the model does not know: row 2 'cat'"
    assert re.search(wanted, capsys.readouterr().err)
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "--data.root: lit-ft test needs labelled images; give a folder with class folders"),
        (["--data.root", "nowhere"], "--data.root: nowhere does not exist"),
        (["--data.root", "photos"], "--data.root: unknown class of the test images 'dog' (choose from ant, "),
        (["--data.roots", "photos"], "--data.roots: there is no such option; nearest: --data.root"),
        (["--data.root", "photos", "--model.lr=1"], "--model.lr: is for a checkpoint, not an exported file; leave it"),
        (["--data", "DigitsDataModule"], "the model has 2 classes (ant, be|e <i>), but the data has 10 classes"),
    ],
)
def test_data_that_cannot_be_tested_is_refused_and_leaves_nothing(here, capsys, args, text):
    Path("photos/dog").mkdir(parents=True)
    shutil.copy(next((here / "new" / CLASSES[0]).iterdir()), "photos/dog")
    assert main(["test", str(here / "model.onnx"), *args]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"lit-ft: {text}")
    assert [path.name for path in Path().iterdir()] == ["photos"]


def test_weights_alone_and_other_commands_are_refused(here, capsys):
    shutil.copy(here / "model.onnx", "model.safetensors")
    assert main(["test", "model.safetensors", "--data.root", str(here / "new")]) == 2
    assert "model.safetensors: must end in .onnx or .pt2; weights alone cannot be run" in capsys.readouterr().err
    given = [str(here / "model.onnx"), "--data.root", str(here / "new")]
    for args in (["predict", "model.safetensors", str(here / "new")], ["validate", *given]):
        assert main(args) == 2
        hint = "is not a checkpoint, or it is damaged; what lit-ft export writes is for lit-ft predict, test and verify"
        assert hint in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not (FLOWERS.is_dir() and SQUEEZENET.is_file()), reason="LIT_FT_DATA has not all of these")
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_real_photos_are_classified_as_by_the_checkpoint(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    classes = sorted(path.name for path in FLOWERS.iterdir())
    run = write_run(tmp_path, 0.05, backbone="squeezenet1_1", weights=str(SQUEEZENET), classes=classes)
    for name in classes:
        for path in sorted((FLOWERS / name).iterdir())[:8]:
            (to := tmp_path / "flowers" / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / path.name)
    assert main(["export", str(run), f"model{suffix}", "--examples", "flowers"]) == 0
    folders = {str(run): run, f"model{suffix}": Path("out")}
    for given in folders:
        options = [] if given == str(run) else ["--folder", "out"]
        assert main(["test", given, "--data.root", "flowers", *options]) == 0
        assert main(["predict", given, "flowers", "--out", f"{Path(given).name}.json"]) == 0
    first, second = (json.loads((one / "metrics.json").read_text())["test_flowers"] for one in folders.values())
    # Where torch rounds once, pixels may differ by one level.
    assert second["test/acc"] == pytest.approx(first["test/acc"], abs=0.05)
    assert second["test/loss"] == pytest.approx(first["test/loss"], rel=0.05)
    flags = [
        [row["unlike_training"] for row in json.loads(Path(f"{Path(given).name}.json").read_text())]
        for given in folders
    ]
    assert sum(one != other for one, other in zip(*flags, strict=True)) <= 1
