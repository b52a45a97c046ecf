import csv
import os
import re
from pathlib import Path
from types import SimpleNamespace

import forked
import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.data.tables.tables import unescape_formula
from lit_ft.errors import UserError
from lit_ft.evaluation import predictions
from lit_ft.evaluation.prediction_files import build_rows, check_target, is_device, write_rows
from lit_ft.evaluation.predictions import PredictionWriter
from lit_ft.model.module import FineTuneModule


def trainer(tmp_path, paths=None, **options):
    datamodule = SimpleNamespace(predict_paths=paths)
    folder = {"log_dir": str(tmp_path / "run"), "default_root_dir": str(tmp_path)}
    return SimpleNamespace(**{"world_size": 1, "is_global_zero": True, "datamodule": datamodule, **folder, **options})


def module(task="multiclass", names=("ant", "bee")):
    return SimpleNamespace(task=SimpleNamespace(name=task), class_names=list(names))


def written(trainer, module, batches, file=None):
    """The lines of the file after batches of answers and, if any, indices."""
    writer = PredictionWriter(file)
    writer.on_predict_start(trainer, module)
    for i, (answers, *indices) in enumerate(batches):
        outputs = {"answers": torch.tensor(answers), **({"indices": torch.tensor(*indices)} if indices else {})}
        writer.on_predict_batch_end(trainer, module, outputs, None, i)
    writer.on_predict_end(trainer, module)
    return None if writer.path is None else writer.path.read_text("utf-8", "surrogateescape").splitlines()


def test_rows_are_in_the_order_of_the_data(tmp_path):
    batches = [([[0.9, 0.1], [0.25, 0.75]], [2, 0]), ([[0.4, 0.6]], [1])]
    assert written(trainer(tmp_path, ["a.png", "b.png", "ü, c.png"]), module(), batches) == [
        "path,class,probability",
        "a.png,bee,0.75",
        "b.png,bee,0.600000024",
        '"ü, c.png",ant,0.899999976',
    ]


def test_images_without_indices_are_numbered_as_they_come(tmp_path):
    batches = [([[0.9, 0.1], [0.2, 0.8]],), ([[0.4, 0.6]],)]
    lines = written(trainer(tmp_path), module(), batches)
    assert [line.rpartition(",")[0] for line in lines[1:]] == ["0,ant", "1,bee", "2,bee"]


def test_row_has_what_is_known_of_a_prediction(tmp_path):
    writer = PredictionWriter()
    writer.on_predict_start(trainer(tmp_path), module())
    outputs = {"answers": torch.tensor([[0.9, 0.1], [0.4, 0.6]])}
    flags = {"unsure": torch.tensor([False, True]), "unlike_training": torch.tensor([True, False])}
    writer.on_predict_batch_end(trainer(tmp_path), module(), outputs | flags, None, 0)
    writer.on_predict_end(trainer(tmp_path), module())
    assert writer.path.read_text().splitlines() == [
        "path,class,probability,unsure,unlike_training",
        "0,ant,0.899999976,no,yes",
        "1,bee,0.600000024,yes,no",
    ]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_have_a_column_a_class(tmp_path, task):
    lines = written(trainer(tmp_path, ["a", "b"]), module(task), [([[0.9, -1.5], [0.25, 0.75]], [1, 0])])
    assert lines == ["path,ant,bee", "a,0.25,0.75", "b,0.899999976,-1.5"]


def test_file_is_in_the_folder_of_the_run(tmp_path):
    written(trainer(tmp_path), module(), [([[1.0, 0.0]], [0])])
    assert (tmp_path / "run" / "predictions.csv").is_file()


def test_file_is_in_the_root_without_a_logger(tmp_path):
    written(trainer(tmp_path, log_dir=None), module(), [([[1.0, 0.0]], [0])])
    assert (tmp_path / "predictions.csv").is_file()


def test_file_is_the_one_that_was_named(tmp_path):
    file = tmp_path / "new" / "mine.csv"
    assert written(trainer(tmp_path), module(), [([[1.0, 0.0]], [0])], str(file)) == file.read_text().splitlines()


def test_paths_that_are_no_text_are_written(tmp_path):
    path = os.fsdecode(b"/x/\xff.png")
    written(trainer(tmp_path, [path]), module(), [([[1.0, 0.0]], [0])], str(tmp_path / "p.csv"))
    assert b"\n/x/\xff.png,ant,1\r\n" in (tmp_path / "p.csv").read_bytes()


def test_earlier_file_stays_whole_until_there_is_another(tmp_path):
    file = tmp_path / "p.csv"
    written(trainer(tmp_path, ["a"]), module(), [([[1.0, 0.0]], [0])], str(file))
    before = file.read_text()
    with pytest.raises(IndexError):
        written(trainer(tmp_path, ["b"]), module(names=["bee"]), [([[1.0, 0.0], [0.0, 1.0]], [0, 1])], str(file))
    assert file.read_text() == before
    assert os.listdir(tmp_path) == ["p.csv"]
    (tmp_path / "link.csv").symlink_to(file)
    written(trainer(tmp_path, ["c"]), module(), [([[1.0, 0.0]], [0])], str(tmp_path / "link.csv"))
    assert (tmp_path / "link.csv").is_symlink()
    assert "c,ant" in file.read_text()


def test_device_is_written_to(tmp_path):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        answers = PredictionWriter(f"/dev/fd/{writer}")
        answers.on_predict_start(trainer(tmp_path), module())
        answers.on_predict_batch_end(trainer(tmp_path), module(), {"answers": torch.tensor([[1.0, 0.0]])}, None, 0)
        answers.on_predict_end(trainer(tmp_path), module())
        os.close(writer)
        assert b"0,ant,1\r\n" in pipe.read()


def test_second_prediction_forgets_the_first(tmp_path):
    writer = PredictionWriter()
    for probability in (0.9, 0.8):
        writer.on_predict_start(trainer(tmp_path), module())
        writer.on_predict_batch_end(
            trainer(tmp_path), module(), {"answers": torch.tensor([[probability, 1 - probability]])}, None, 0
        )
        writer.on_predict_end(trainer(tmp_path), module())
    assert writer.path.read_text().splitlines()[1:] == ["0,ant,0.800000012"]


@pytest.mark.parametrize("first", [True, False])
def test_first_of_two_processes_writes_the_rows_of_both_once(tmp_path, monkeypatch, first):
    mine, other = {0: [0.9, 0.1], 2: [0.2, 0.8]}, {1: [0.7, 0.3], 2: [0.2, 0.8]}  # the last image filled a shard up

    def gather(parts, rows):
        assert rows == {index: pytest.approx(answers) for index, answers in mine.items()}
        parts[:] = [rows, other]

    monkeypatch.setattr(predictions.dist, "all_gather_object", gather)
    lines = written(
        trainer(tmp_path, world_size=2, is_global_zero=first), module(), [(list(mine.values()), list(mine))]
    )
    rows = ["path,class,probability", "0,ant,0.899999976", "1,ant,0.7", "2,bee,0.8"]
    assert lines == (rows if first else None)


def test_trainer_writes_what_the_model_answers(tmp_path):
    torch.manual_seed(0)
    model = FineTuneModule("mnist_cnn", weights=None, classes=["ant", "bee", "cat"])
    images, order = torch.randint(256, (7, 1, 28, 28), dtype=torch.uint8), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    loader = DataLoader(TensorDataset(images[order], order), batch_size=3)
    writer = PredictionWriter()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    L.Trainer(default_root_dir=tmp_path, callbacks=[writer], **quiet).predict(model, loader)
    with torch.no_grad():
        best = model.eval()(images).softmax(dim=1).max(dim=1)
    expected = [f"{i},{model.class_names[c]}," for i, c in enumerate(best.indices)]
    lines = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    # To the last bit of those of batches of the same size.
    assert [float(line.split(",")[2]) for line in lines] == pytest.approx(best.values.tolist(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_number_is_read_back_as_it_was(tmp_path, dtype):
    numbers = torch.tensor([[6e-7, 1 / 3], [1.0, 1e-38], [2019.125, -0.1]], dtype=torch.float64).to(dtype)
    writer = PredictionWriter()
    writer.on_predict_start(trainer(tmp_path), module("regression"))
    writer.on_predict_batch_end(trainer(tmp_path), module("regression"), {"answers": numbers}, None, 0)
    writer.on_predict_end(trainer(tmp_path), module("regression"))
    rows = [line.split(",")[1:] for line in writer.path.read_text().splitlines()[1:]]
    assert torch.tensor([list(map(float, row)) for row in rows], dtype=torch.float64).to(dtype).equal(numbers)


def test_probability_near_zero_is_no_zero(tmp_path):
    lines = written(trainer(tmp_path), module("multilabel"), [([[6e-7, 0.5]], [0])])
    assert lines[1:] == ["0,6.00000021e-07,0.5"]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_what_a_spreadsheet_would_run_is_text(tmp_path, task):
    names = ["=1+2", "-1"]
    paths = ["@x.png", "-1.png", "+x.png", "\tx.png", "\rx.png", "'=x.png", "/=x.png"]
    writer = PredictionWriter()
    answers = torch.tensor([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 3)
    for fake in [(trainer(tmp_path, paths), module(task, names))]:
        writer.on_predict_start(*fake)
        writer.on_predict_batch_end(*fake, {"answers": answers}, None, 0)
        writer.on_predict_end(*fake)
    with writer.path.open(newline="") as file:
        header, *rows = csv.reader(file)
    escaped = ["'@x.png", "'-1.png", "'+x.png", "'\tx.png", "'\rx.png", "''=x.png", "/=x.png"]
    assert [row[0] for row in rows] == escaped
    assert [unescape_formula(row[0]) for row in rows] == paths
    if task == "multilabel":
        assert header == ["path", "'=1+2", "-1"]
    else:
        assert [row[1] for row in rows] == ["'=1+2"] * 4 + ["-1"] * 3


@pytest.mark.parametrize("file", ["out.json", "out", "folder/out.csv.gz", "out."])
def test_file_of_another_kind_is_refused(file):
    with pytest.raises(UserError, match=rf"^predictions.file: {file} must end in .csv or .tsv$"):
        PredictionWriter(file)


def test_tsv_has_tabs(tmp_path):
    lines = written(trainer(tmp_path, ["a,b"]), module(), [([[1.0, 0.0]], [0])], str(tmp_path / "out.TSV"))
    assert lines == ["path\tclass\tprobability", "a,b\tant\t1"]


@pytest.mark.parametrize("file", [None, "mine.csv"])
def test_file_that_exists_is_refused_before_anything_is_predicted(tmp_path, file):
    file = file and str(tmp_path / file)
    place = Path(file or tmp_path / "run" / "predictions.csv")
    PredictionWriter(file).setup(trainer(tmp_path), module(), "predict")
    place.parent.mkdir(exist_ok=True)
    place.write_text("of last week")
    told = f"predictions.file: {place} exists; name another file, or to overwrite it: predictions.overwrite true"
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        PredictionWriter(file).setup(trainer(tmp_path), module(), "predict")
    PredictionWriter(file).setup(trainer(tmp_path), module(), "fit")  # nothing is written
    PredictionWriter(file, overwrite=True).setup(trainer(tmp_path), module(), "predict")
    assert place.read_text() == "of last week"
    assert sorted(place.parent.iterdir()) == [place] if file is None else True


def test_target_that_cannot_be_written_is_refused_before_anything_is_predicted(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "kept.csv").touch()
    for file, told in {
        "file/deep/p.csv": "cannot be written (Not a directory); name another file",
        "folder.csv": "is a folder, not a file",
    }.items():
        with pytest.raises(UserError, match=f"^predictions.file: {tmp_path}/{re.escape(f'{file} {told}')}$"):
            PredictionWriter(str(tmp_path / file), overwrite=True).setup(trainer(tmp_path), module(), "predict")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"^predictions.file: {tmp_path}/kept.csv is read-only; name another file$"):
        PredictionWriter(str(tmp_path / "kept.csv"), overwrite=True).setup(trainer(tmp_path), module(), "predict")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(
        UserError, match=r"run/predictions.csv cannot be written \(Permission denied\); name another file$"
    ):
        PredictionWriter().setup(trainer(tmp_path), module(), "predict")


def test_all_processes_refuse_what_the_first_does(tmp_path):
    strategy = SimpleNamespace(broadcast=lambda refusal: "p.csv exists")
    with pytest.raises(UserError, match=r"^predictions.file: p.csv exists$"):
        PredictionWriter().setup(
            trainer(tmp_path, world_size=2, is_global_zero=False, strategy=strategy), module(), "predict"
        )


def test_pipe_is_not_opened_before_there_is_something_to_write(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    PredictionWriter(str(tmp_path / "pipe")).setup(trainer(tmp_path), module(), "predict")  # would wait for a reader


def print_around_predictions():
    first = SimpleNamespace(world_size=1, is_global_zero=True, datamodule=None, log_dir=".")
    two = SimpleNamespace(task=SimpleNamespace(name="multiclass"), class_names=["ant", "bee"])
    writer = PredictionWriter("/dev/stdout")
    print("before")
    writer.setup(first, two, "predict")
    writer.on_predict_batch_end(first, two, {"answers": torch.tensor([[1.0, 0.0]])}, None, 0)
    writer.on_predict_end(first, two)
    print("after")


def test_what_standard_output_was_sent_to_keeps_what_was_printed(tmp_path):
    assert forked.wait(forked.start(print_around_predictions, out=tmp_path / "out.txt")) == [0]
    assert (tmp_path / "out.txt").read_text().splitlines() == ["before", "path,class,probability", "0,ant,1", "after"]
    assert os.listdir(tmp_path) == ["out.txt"]


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


def test_look_at_a_target_in_new_folders_leaves_none_behind(tmp_path):
    assert check_target(tmp_path / "a" / "b" / "out.csv", overwrite=False) is None
    assert list(tmp_path.iterdir()) == []
