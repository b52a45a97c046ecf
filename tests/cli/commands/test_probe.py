"""``lit-ft probe`` as a user runs it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import forked
import numpy as np
import pytest
import yaml
from image_files import save_photo
from probe_sets import draw, write_photos

MNIST = ("--model.backbone", "mnist_cnn", "--model.weights", "MNIST")
PHOTOS = (*MNIST, "--data", "ImageFolderDataModule", "--data.root", "photos")


@pytest.fixture
def photos(lit_ft):
    """Photos of three classes, in the folder of the command."""
    return write_photos(Path("photos").absolute(), {"dots": 20, "lines": 20, "plain": 20})


def flip(root, number):
    """Moves some photos of each class into the next class, and gives their paths."""
    names = sorted(path.name for path in root.iterdir())
    moved = []
    for name, wrong in zip(names, [*names[1:], names[0]], strict=True):
        for i in range(number):
            target = root / wrong / f"{name}{i}.png"
            shutil.move(root / name / f"{i:03}.png", target)
            moved.append(str(target))
    return moved


@pytest.mark.long
def test_planted_faults_are_found_by_a_process_of_its_own(tmp_path, monkeypatch):
    root = write_photos(tmp_path / "photos", {"dots": 40, "lines": 40, "plain": 40})
    flipped = flip(root, 2)
    odd = [root / "plain" / f"odd{i}.png" for i in range(4)]
    for i, path in enumerate(odd):
        draw("other", i).save(path)
    args = [*PHOTOS, "--folder", "out", "--offline"]
    monkeypatch.chdir(tmp_path)
    done = forked.command("probe", *args, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Labels that are probably wrong" in done.stdout
    found = json.loads((tmp_path / "out" / "probe.json").read_text())["findings"]
    suspects = {item["path"] for item in found["issues"]["items"][: 2 * len(flipped)]}
    assert len(suspects & set(flipped)) >= 0.7 * len(flipped)
    assert {item["path"] for item in found["unlike"]["items"][:8]} >= {str(path) for path in odd}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "label_issues.csv", "probe.html", "probe.json", "suggested.yaml",
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out" / "label_issues.csv").read_text().splitlines()))
    assert len(rows) == 124
    assert rows[0]["path"] == found["issues"]["items"][0]["path"]


@pytest.mark.long
def test_suggestion_runs_as_it_is(run, photos):
    printed = run("probe", *PHOTOS, "--folder", "out", "--trainer.max_epochs", 1, "--unfreeze.strategy", "linear_probe")
    assert printed.rstrip().endswith("Run: lit-ft finetune --config out/suggested.yaml")
    text = Path("out/suggested.yaml").read_text()
    score = re.search(r"mnist_cnn +(\d+\.\d%) +(\S+) to (\S+)", printed)
    assert f"    # accuracy {score[1]} ({score[2]} to {score[3]}), 0.00 GFLOPs\n" in text
    config = yaml.safe_load(text)
    assert config["model"]["init_args"] == {"backbone": "mnist_cnn", "weights": "MNIST"}
    assert config["trainer"]["max_epochs"] == 1
    assert {"name", "folder", "stages", "backbones"}.isdisjoint(config)
    assert "logs/suggested/version_0" in run("finetune", "--config", "out/suggested.yaml")


@pytest.mark.long
def test_without_a_folder_nothing_is_written(run, photos):
    before = {*Path().rglob("*")}
    run("probe", *PHOTOS)
    assert {*Path().rglob("*")} == before


@pytest.mark.long
def test_backbones_are_compared_and_the_best_is_suggested(run):
    write_photos(Path("photos"), {"dots": 8, "lines": 8})
    size = ("--model.input", '{"size": 28}')
    backbones = "squeezenet1_1=null, mnist_cnn=MNIST,resnet5"
    left_out = (
        "`model.input.size`: left out for squeezenet1_1, resnet5, as it is for mnist_cnn, the backbone of the config"
    )
    with pytest.warns(UserWarning, match=left_out):
        printed = run("probe", *PHOTOS, *size, "--backbones", backbones, "--stages", "last", "--folder", "out")
    best, other = re.findall(r"^  (mnist_cnn|squeezenet1_1) ", printed, re.M)
    assert "resnet5 cannot be used: --model.backbone: unknown backbone 'resnet5'" in printed
    assert "Stages of" not in printed
    text = Path("out/suggested.yaml").read_text()
    assert re.search(rf"    # {best}: \d+\.\d points more than {other} \(", text)
    chosen = yaml.safe_load(text)["model"]["init_args"]
    assert (chosen["backbone"], chosen["weights"]) == (best, {"mnist_cnn": "MNIST", "squeezenet1_1": None}[best])
    assert ("input" in chosen) == (best == "mnist_cnn")


@pytest.mark.long
def test_copies_are_kept_in_one_fold_and_told(run, photos):
    for i in range(6):
        shutil.copy(photos / "dots" / f"{i:03}.png", photos / "dots" / f"copy{i}.png")
    assert re.search(r"\d%, \d+\.\d% without the 6 copies", run("probe", *PHOTOS))


@pytest.mark.long
def test_sets_in_memory_have_pictures_and_no_table(run):
    printed = run("probe", *MNIST, "--data", "DigitsDataModule", "--data.shots", 5, "--folder", "out")
    assert "DigitsDataModule: train 50, val 300 images" in printed
    assert Path("out/probe.html").read_text().count("<img ") == 100
    assert not Path("out/label_issues.csv").exists()


def write_table(columns):
    """Photos whose brightness is a number, and a table of labels."""
    values = np.linspace(20, 230, 40)
    for i, value in enumerate(values):
        save_photo(Path(f"photos/{i}.png"), (int(value),) * 3, (28, 28))
    rows = [",".join(["path", *columns]), *(f"photos/{i}.png,{columns_of(columns, v)}" for i, v in enumerate(values))]
    Path("table.csv").write_text("\n".join(rows))


def columns_of(columns, value):
    return ",".join(f"{value:.1f}" if column == "number" else str(int(value > 120)) for column in columns)


@pytest.mark.parametrize(
    ("task", "columns", "score"), [("regression", ["number"], r"R2"), ("multilabel", ["a", "b"], "label accuracy")]
)
def test_other_tasks_leave_out_what_is_for_classes(run, task, columns, score):
    write_table(columns)
    given = ("--data", "ImageTableDataModule", "--data.table", "table.csv", "--data.label_columns", json.dumps(columns))
    printed = run("probe", *MNIST, "--model.task", task, *given, "--folder", "out")
    assert f"  backbone   {score}" in re.sub(r"backbone +", "backbone   ", printed)
    assert "Labels" not in printed
    found = json.loads(Path("out/probe.json").read_text())
    assert found["backbones"][0]["score"] > 0.9
    assert found["findings"]["issues"] is None
    assert not Path("out/label_issues.csv").exists()
    assert yaml.safe_load(Path("out/suggested.yaml").read_text())["model"]["init_args"]["task"] == task


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--backbones", "mnist_cnn,,resnet18"),
            "--backbones: 'mnist_cnn,,resnet18' has an empty name; give names with",
        ),
        (("--backbones", ","), "--backbones: ',' has an empty name; give names with one comma between two"),
        (("--backbones", "mnist_cnn,mnist_cnn=null"), "--backbones: mnist_cnn comes twice; leave one out"),
        (("--backbones", "resnet5"), "resnet5: --model.backbone: unknown backbone 'resnet5'"),
        (("--folder", "photos/dots/000.png"), "--folder: photos/dots/000.png is a file; name a folder"),
        (("--stages", "first"), "--stages"),
    ],
)
def test_mistakes_are_one_line(refused, photos, given, message):
    assert message in refused("probe", *PHOTOS, *given)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, "--data.root: photos does not exist; give another path"),
        ({"dots": 5}, "--data.root: photos has only one class, 'dots', and two are needed"),
        ({"dots": 1, "lines": 1}, "the classes dots, lines have one image, and two are needed"),
    ],
)
def test_photos_that_are_too_few_are_one_line(refused, numbers, message):
    write_photos(Path("photos"), numbers)
    assert message in refused("probe", *PHOTOS)


def test_config_that_is_not_there_is_one_line(refused):
    assert "--config: File does not exist: " in refused("probe", "--config", "nosuch.yaml")


def test_images_that_are_all_equal_are_one_line(refused):
    for i in range(12):
        save_photo(Path(f"photos/{'ab'[i % 2]}/{i}.png"))
    assert refused("probe", *PHOTOS) == (
        "lit-ft: --data: cross-validation needs two images of a class at least, without copies, in train and val; add "
        "images"
    )


def test_weights_that_are_missing_offline_are_one_line(refused, photos):
    line = refused("probe", *PHOTOS, "--backbones", "resnet18", "--offline")
    assert "resnet18: --offline: the weights of resnet18 IMAGENET1K_V1 are missing" in line


def test_data_must_be_given(refused):
    assert "--data: lit-ft probe needs images" in refused("probe", *MNIST)


def test_one_image_is_one_line(refused):
    write_photos(Path("photos"), {"dots": 1, "lines": 20})
    assert "the class 'dots' has one image, and two are needed" in refused("probe", *PHOTOS)
