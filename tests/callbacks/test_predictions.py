import os
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lit_ft.callbacks import PredictionWriter, predictions
from lit_ft.module import FineTuneModule


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
        "a.png,bee,0.7500",
        "b.png,bee,0.6000",
        '"ü, c.png",ant,0.9000',
    ]


def test_images_without_indices_are_numbered_as_they_come(tmp_path):
    batches = [([[0.9, 0.1], [0.2, 0.8]],), ([[0.4, 0.6]],)]
    lines = written(trainer(tmp_path), module(), batches)
    assert lines[1:] == ["0,ant,0.9000", "1,bee,0.8000", "2,bee,0.6000"]


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks_have_a_column_a_class(tmp_path, task):
    lines = written(trainer(tmp_path, ["a", "b"]), module(task), [([[0.9, -1.5], [0.25, 0.75]], [1, 0])])
    assert lines == ["path,ant,bee", "a,0.2500,0.7500", "b,0.9000,-1.5000"]


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
    assert b"\n/x/\xff.png,ant,1.0000" in (tmp_path / "p.csv").read_bytes()


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
        assert b"0,ant,1.0000" in pipe.read()


def test_second_prediction_forgets_the_first(tmp_path):
    writer = PredictionWriter()
    for probability in (0.9, 0.8):
        writer.on_predict_start(trainer(tmp_path), module())
        writer.on_predict_batch_end(
            trainer(tmp_path), module(), {"answers": torch.tensor([[probability, 1 - probability]])}, None, 0
        )
        writer.on_predict_end(trainer(tmp_path), module())
    assert writer.path.read_text().splitlines()[1:] == ["0,ant,0.8000"]


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
    rows = ["path,class,probability", "0,ant,0.9000", "1,ant,0.7000", "2,bee,0.8000"]
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
    assert [float(line.split(",")[2]) for line in lines] == pytest.approx(best.values.tolist(), abs=1e-4)
