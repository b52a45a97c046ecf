"""``lit-ft predict CHECKPOINT PHOTOS`` as a user runs it."""

import csv
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import forked
import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

import lit_ft
from lit_ft.cli import main
from lit_ft.cli.commands import PREDICT_OPTIONS
from lit_ft.cli.commands.predict import _BATCH
from lit_ft.model.module import FineTuneModule

CLASSES = ["cat", "=dog", "owl"]


def checkpoint(folder, **options):
    torch.manual_seed(0)
    module = FineTuneModule("mnist_cnn", weights=None, **{"classes": CLASSES, **options})
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**content, "pytorch-lightning_version": L.__version__}, path := folder / "best.ckpt")
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path("photos/deep").mkdir(parents=True)
    for name in ("photos/b.png", "photos/deep/a.png", "photos/c.jpg", "alone.png"):
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(name)
    return tmp_path


def table(name="predictions.csv"):
    with open(name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_photos_of_all_kinds_of_arguments_have_a_row_each_in_order(best, photos, capsys):
    assert main(["predict", str(best), "photos", "alone.png", "photos/*.jpg"]) == 0
    rows = table()
    assert [row["path"] for row in rows] == [
        "photos/b.png",
        "photos/c.jpg",
        "photos/deep/a.png",
        "alone.png",
        "photos/c.jpg",
    ]
    found = lit_ft.load(best, "cpu").predict([row["path"] for row in rows])
    assert [row["class"] for row in rows] == [one.label.replace("=dog", "'=dog") for one in found]
    assert [float(row["probability"]) for row in rows] == pytest.approx([one.probability for one in found], rel=1e-5)
    assert capsys.readouterr().out == "Predictions: predictions.csv, 5 images\n"


def test_several_classes_have_columns_and_probabilities_that_sum_to_one(best, photos):
    assert main(["predict", str(best), "photos", "--top_k", "9", "--out", "out.json"]) == 0
    for row in json.loads(Path("out.json").read_text()):
        assert sorted([row["class"], row["class_2"], row["class_3"]]) == sorted(CLASSES)
        assert row["probability"] >= row["probability_2"] >= row["probability_3"]
        assert row["probability"] + row["probability_2"] + row["probability_3"] == pytest.approx(1, abs=1e-5)


def test_unreadable_photo_has_its_reason_and_the_others_their_predictions(best, photos, capsys):
    Path("photos/aa.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["predict", str(best), "photos"]) == 0
    rows = table()
    assert [Path(row["path"]).name for row in rows] == ["aa.png", "b.png", "c.jpg", "a.png"]
    assert rows[0]["error"].startswith("cannot be read as an image (")
    assert (rows[0]["class"], rows[1]["error"]) == ("", "")
    assert all(row["class"] for row in rows[1:])
    assert capsys.readouterr().out.endswith("4 images, 1 unreadable\n")
    assert main(["predict", str(best), "photos/aa.png", "--overwrite"]) == 1


def test_photos_of_more_bits_than_the_model_takes_are_counted_in_a_warning(best, photos):
    Image.fromarray(np.full((30, 40), 9000, np.uint16)).save("photos/z.png")
    Path("photos/aa.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    line = (
        "1 of 5 images have more than 8 bits of three colours, such as photos/z.png of 16 bits, and are reduced to it"
    )
    with pytest.warns(UserWarning, match=f"{line}; a model that is fitted with `data.bands` all takes their own"):
        assert main(["predict", str(best), "photos"]) == 0


def test_more_photos_than_a_batch_stay_in_order(best, photos):
    names = [f"many/{i:03}.png" for i in range(2 * _BATCH + 3)]
    Path("many").mkdir()
    for i, name in enumerate(names):
        Image.new("L", (28, 28), i).save(name)
    assert main(["predict", str(best), "many"]) == 0
    assert [row["path"] for row in table()] == names
    one = lit_ft.load(best, "cpu").predict(names[50])[0]
    assert float(table()[50]["probability"]) == pytest.approx(one.probability, rel=1e-5)


def test_parquet_holds_the_same(best, photos):
    pq = pytest.importorskip("pyarrow.parquet")
    assert main(["predict", str(best), "photos", "--out", "out.parquet"]) == 0
    assert main(["predict", str(best), "photos"]) == 0
    rows = pq.read_table("out.parquet").to_pylist()
    assert [row["class"] for row in rows] == [row["class"].lstrip("'") for row in table()]


def test_names_that_are_no_text_and_probabilities_that_are_no_numbers_are_written(photos, tmp_path):
    best = checkpoint(tmp_path)
    content = torch.load(best, weights_only=True)
    content["state_dict"] = {name: torch.full_like(value, math.nan) for name, value in content["state_dict"].items()}
    torch.save(content, best)
    name = os.fsdecode(b"photos/\xff.png")
    try:
        os.rename("photos/b.png", name)
    except OSError:
        pytest.skip("this file system has names of text alone")
    assert main(["predict", str(best), "photos", "--out", "out.json"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    rows = json.loads(Path("out.json").read_text(), parse_constant=refuse)
    assert [row["probability"] for row in rows] == [None] * 3
    assert name in [row["path"] for row in rows]
    pq = pytest.importorskip("pyarrow.parquet")
    assert main(["predict", str(best), "photos", "--out", "out.parquet"]) == 0
    assert "photos/\\udcff.png" in pq.read_table("out.parquet").column("path").to_pylist()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_pipe_is_written_to(best, photos):
    os.mkfifo("out.csv")
    with subprocess.Popen(["cat", "out.csv"], stdout=subprocess.PIPE, text=True) as reader:
        assert main(["predict", str(best), "alone.png", "--out", "out.csv"]) == 0
        assert Path("out.csv").is_fifo()
        assert reader.communicate(timeout=60)[0].startswith("path,class,probability\nalone.png,")


def test_home_folder_is_that_of_the_user(best, photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos / "home"))
    monkeypatch.setenv("USERPROFILE", str(photos / "home"))
    assert main(["predict", str(best), "alone.png", "--out=~/a.csv"]) == 0
    assert len(table("home/a.csv")) == 1


def test_number_whose_name_is_error_is_no_error(photos, tmp_path, capsys):
    Path("bad.png").write_bytes(b"")
    best = checkpoint(tmp_path, task="regression", classes=["error"])
    assert main(["predict", str(best), "alone.png", "bad.png"]) == 0
    good, bad = table()
    assert math.isfinite(float(good["error"]))
    assert (bad["error"], good["why unread"]) == ("", "")
    assert bad["why unread"].startswith("cannot be read")
    assert capsys.readouterr().out.endswith("2 images, 1 unreadable\n")


def test_checkpoint_without_some_weights_is_refused_in_a_line(photos, tmp_path, capsys):
    best = checkpoint(tmp_path)
    content = torch.load(best, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, best)
    assert main(["predict", str(best), "alone.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lit-ft: CHECKPOINT: {best} has not the weights of its network (Missing key")
    assert error.count("\n") == 1


def test_labels_and_numbers(photos, tmp_path):
    best = checkpoint(tmp_path, task="multilabel", classes=["sun", "sea"])
    assert main(["predict", str(best), "alone.png"]) == 0
    (row,) = table()
    shares = {name: float(row[f"probability of {name}"]) for name in ("sun", "sea")}
    assert list(row)[-2:] == ["probability of sun", "probability of sea"]  # in the order of the labels
    assert row["labels"] == "; ".join(name for name, share in shares.items() if share > 0.5)
    best = checkpoint(tmp_path, task="regression", classes=["year"])
    assert main(["predict", str(best), "alone.png", "--overwrite"]) == 0
    (row,) = table()
    assert row.keys() == {"path", "year"}
    assert math.isfinite(float(row["year"]))


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["{best}"], "the following arguments are required: PHOTOS (see lit-ft predict --help)"),
        (["{best}", "nowhere"], "PHOTOS: nowhere does not exist"),
        (["{best}", "x" * 300], "PHOTOS: xxx"),
        (["{best}", "photos", "--out", "x" * 300 + ".csv"], "--out: xxx"),
        (["{best}", "n*.png"], "PHOTOS: no file matches n*.png"),
        (["{best}", "photos", "--out", "a.txt"], "--out: a.txt must end in .csv, .json, .parquet"),
        (["{best}", "photos", "--out", "no/such/a.csv"], ""),
        (["{best}", "photos", "--top_k", "0"], "--top_k: must be at least 1, got 0"),
        (["gone.ckpt", "photos"], "CHECKPOINT: no such file: gone.ckpt"),
        (
            ["{best}", "photos", "--data.fit", "squash"],
            "--data.fit: there is no such option; options of data and model are those of the checkpoint, as how photos",
        ),
        (
            ["{best}", "photos", "--out", "there.csv"],
            "--out: there.csv exists; name another file, or to overwrite it: --overwrite",
        ),
    ],
)
def test_mistake_ends_in_a_line_and_writes_nothing(best, photos, capsys, args, line):
    Path("there.csv").write_text("mine")
    code = main(["predict", *(arg.format(best=best) for arg in args)])
    error = capsys.readouterr().err
    if not line:  # the folder is made
        assert code == 0
        return
    assert code == 2
    assert error.startswith(f"lit-ft: {line}")
    assert Path("there.csv").read_text() == "mine"
    assert not Path("predictions.csv").exists()


def test_photos_before_the_run_are_refused_with_the_order_that_is_meant(best, photos, capsys):
    Path("run/checkpoints").mkdir(parents=True)
    assert main(["predict", "photos", "run"]) == 2
    assert capsys.readouterr().err == "lit-ft: photos: the run comes first; type lit-ft predict run photos\n"


@pytest.mark.parametrize("args", [[], ["--top_k", "2"]])
def test_neither_checkpoint_nor_photos_is_answered_with_both(capsys, args):
    assert main(["predict", *args]) == 2
    assert capsys.readouterr().err.startswith("lit-ft: the following arguments are required: CHECKPOINT, PHOTOS")


def test_options_may_come_first(best, photos):
    assert main(["predict", "--out", "first.json", "--top_k=2", str(best), "alone.png"]) == 0
    (row,) = json.loads(Path("first.json").read_text())
    assert "class_2" in row


def test_probabilities_of_all_classes_have_columns(best, photos):
    assert main(["predict", str(best), "alone.png", "--probabilities", "--top_k", "2", "--out", "out.json"]) == 0
    (row,) = json.loads(Path("out.json").read_text())
    named = {name: row[f"probability of {name}"] for name in CLASSES}
    assert list(row)[-len(CLASSES) :] == [f"probability of {name}" for name in CLASSES]
    assert sum(named.values()) == pytest.approx(1, abs=1e-5)
    assert (named[row["class"]], named[row["class_2"]]) == (row["probability"], row["probability_2"])
    assert "class_3" not in row


@pytest.mark.long
def test_prediction_loads_no_library_of_trainings(photos, tmp_path):
    best = checkpoint(tmp_path, task="regression", classes=["year"])
    code = (
        "import sys; from lit_ft.cli import main; code = main(sys.argv[1:]); trained = ('lightning', 'torchmetrics', "
        "'scipy', 'sklearn', 'matplotlib', 'jsonargparse', 'tensorboard', 'yaml', 'jinja2', 'rich'); "
        "print(code, [name for name in trained if name in sys.modules])"
    )
    args = [sys.executable, "-c", code, "predict", str(best), "photos", "--tta", "flip"]
    done = subprocess.run(args, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "Predictions: predictions.csv, 3 images\n0 []\n"
    assert len(table()) == 3


def launch(size, *args):
    """The exit codes, and what each process printed, of as many as torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    logs = [Path(f"rank{rank}.log") for rank in range(size)]
    codes = forked.wait(*(
        forked.start(forked.lit_ft_main, ["predict", *map(str, args)], out=log, RANK=str(rank), **shared)
        for rank, log in enumerate(logs)
    ))  # fmt: skip
    return codes, [[line for line in log.read_text().splitlines() if "warning" not in line.lower()] for log in logs]


@pytest.mark.slow
def test_processes_of_a_launcher_share_the_photos_and_write_each_once_in_order(best, photos):
    Path("photos/aa.png").write_bytes(b"")
    assert main(["predict", str(best), "photos", "--out", "one.csv"]) == 0
    codes, printed = launch(3, best, "photos", "--out", "three.csv")
    assert (codes, printed) == ([0] * 3, [["Predictions: three.csv, 4 images, 1 unreadable"], [], []])
    one, three = table("one.csv"), table("three.csv")
    assert [(row["path"], row["class"], row["error"]) for row in three] == [
        (row["path"], row["class"], row["error"]) for row in one
    ]
    for row, other in zip(one, three, strict=True):  # of batches of other sizes
        assert float(row["probability"] or 0) == pytest.approx(float(other["probability"] or 0), rel=1e-5)


@pytest.mark.long
def test_launched_processes_refuse_in_one_line(best, photos):
    Path("there.csv").write_text("mine")
    codes, printed = launch(2, best, "photos", "--out", "there.csv")
    line = "lit-ft: --out: there.csv exists; name another file, or to overwrite it: --overwrite"
    assert (codes, printed) == ([2, 2], [[line], []])
    assert Path("there.csv").read_text() == "mine"


def test_list_names_the_photos_from_its_own_folder(best, photos, capsys):
    Path("photos/list.csv").write_text("id;image\n1;b.png\n2;gone.png\n")
    assert main(["predict", str(best), "photos/list.csv", "alone.png", "--out", "out.json"]) == 0
    rows = json.loads(Path("out.json").read_text())
    assert [(row["path"], "error" in row) for row in rows] == [
        ("photos/b.png", False), ("photos/gone.png", True), ("alone.png", False)
    ]  # fmt: skip
    Path("list.csv").write_text("path\n")
    assert main(["predict", str(best), "list.csv", "--overwrite"]) == 2
    assert capsys.readouterr().err == "lit-ft: PHOTOS: list.csv has no paths of images\n"


def test_flag_has_another_column_than_a_number_of_its_name(photos, tmp_path):
    best = checkpoint(tmp_path, task="regression", classes=["unlike_training"])
    model, content = lit_ft.load(best, "cpu"), torch.load(best, weights_only=True)
    known = {"temperature": 1.0, "references": torch.eye(model.backbone.num_features)[:1], "farthest": 0.1}
    torch.save({**content, "calibration": known}, best)
    assert main(["predict", str(best), "alone.png", "--out", "out.json"]) == 0
    (row,) = json.loads(Path("out.json").read_text())
    assert row["unlike_training"] == pytest.approx(model.predict("alone.png")[0].values["unlike_training"])
    assert row["is_unlike_training"] is True


def test_views_of_a_photo_are_averaged(best, photos):
    photo = Image.open("alone.png").crop((0, 0, 28, 28))  # of the network's size, so that nothing is rounded
    photo.save("square.png")
    assert main(["predict", str(best), "square.png", "--tta", "flip", "--probabilities", "--out", "out.json"]) == 0
    (row,) = json.loads(Path("out.json").read_text())
    model, mirrored = lit_ft.load(best, "cpu"), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    both = [dict(model.predict(one, top_k=3)[0].top_k) for one in (photo, mirrored)]
    for name in CLASSES:
        assert row[f"probability of {name}"] == pytest.approx((both[0][name] + both[1][name]) / 2, abs=1e-5)


def test_options_that_may_stand_first_are_all_that_the_command_has(capsys):
    """Any other begins the form by a config."""
    assert main(["predict", "--help"]) == 0
    usage = capsys.readouterr().out.partition("\n\n")[0]
    assert {*re.findall(r"(?<=\[)--?\w+", usage)} | {"--help"} == set(PREDICT_OPTIONS)
