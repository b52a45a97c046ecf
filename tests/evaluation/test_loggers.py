import io
import os
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_ft.evaluation.loggers import find_board, log_picture, log_scalars, takes_pictures
from lit_ft.evaluation.tensorboard import BoardLogger


def trainer_of(*loggers, is_first=True):
    return SimpleNamespace(loggers=list(loggers), is_global_zero=is_first)


class Taken(list):
    def __call__(self, *args, **options):
        self.append((*args, options))


PICTURE = Image.new("RGB", (6, 4), (200, 0, 0))


@pytest.mark.parametrize(("has_photos", "kind"), [(False, "PNG"), (True, "JPEG")])
def test_picture_goes_to_each_kind_of_logger_in_its_own_way(tmp_path, has_photos, kind):
    wandb, mlflow, board = Taken(), Taken(), BoardLogger(tmp_path / "board", "", "")
    loggers = [
        SimpleNamespace(log_image=wandb),
        board,
        SimpleNamespace(experiment=SimpleNamespace(log_image=mlflow), run_id="7"),
        CSVLogger(tmp_path),
    ]
    log_picture(trainer_of(*loggers), "val/x", PICTURE, 3, has_photos)
    [(key, [pixels], step, _)] = wandb
    assert (key, step, pixels.tolist()) == ("val/x", 3, [[[200, 0, 0]] * 6] * 4)
    [(run, pixels, options)] = mlflow
    assert (run, pixels.shape, options) == ("7", (4, 6, 3), {"key": "val/x", "step": 3})
    board.finalize("success")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    [event] = events.Images("val/x")
    assert (event.step, event.width, event.height) == (3, 6, 4)
    with Image.open(io.BytesIO(event.encoded_image_string)) as image:
        assert (image.format, image.size) == (kind, (6, 4))
        assert abs(image.getpixel((3, 2))[0] - 200) < 5


def test_picture_is_added_after_the_end_of_a_fit_which_closes_the_file(tmp_path):
    board = BoardLogger(tmp_path, "", "")
    log_picture(trainer_of(board), "val/x", PICTURE, 3)
    board.finalize("success")
    log_picture(trainer_of(board), "val/y", PICTURE, 4, has_photos=True)
    board.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for tag in ("val/x", "val/y") for event in events.Images(tag)] == [3, 4]


def test_nothing_is_logged_where_nobody_takes_it(tmp_path):
    scalars, wandb = Taken(), Taken()
    taker = SimpleNamespace(log_image=wandb, log_metrics=scalars)
    assert not takes_pictures(trainer_of(CSVLogger(tmp_path)))
    assert not takes_pictures(trainer_of(taker, is_first=False))
    for trainer in (trainer_of(CSVLogger(tmp_path)), trainer_of(taker, is_first=False), trainer_of()):
        log_picture(trainer, "x", PICTURE, 0)
    log_scalars(trainer_of(taker, is_first=False), {"x": 1.0}, 0)
    log_scalars(trainer_of(taker), {}, 0)
    assert (scalars, wandb) == ([], [])


def test_board_is_that_of_the_first_process(tmp_path):
    logger = BoardLogger(tmp_path)
    writer = logger.open()
    assert find_board(trainer_of(CSVLogger(tmp_path), logger)) is writer
    assert find_board(trainer_of(logger, is_first=False)) is None
    logger.finalize("success")


@pytest.mark.filterwarnings("ignore")  # of W&B's own files
def test_wandb_takes_scalars_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="p")
    log_scalars(trainer_of(logger), {"phase/number": 1.0}, 0)
    log_picture(trainer_of(logger), "val/x", PICTURE, 2)
    folder = logger.experiment.dir
    logger.experiment.finish()
    assert [name.partition("_")[0] for name in os.listdir(f"{folder}/media/images/val")] == ["x"]


@pytest.mark.filterwarnings("ignore")  # of MLflow's database
def test_mlflow_takes_scalars_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/x.db", artifact_location=f"file:{tmp_path}/a")
    log_scalars(trainer_of(logger), {"phase/number": 1.0, "phase/trained_share": 0.5}, 4)
    log_picture(trainer_of(logger), "val/x", PICTURE, 2)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.metrics == {"phase/number": 1.0, "phase/trained_share": 0.5}
    assert any("val~x" in file.path for file in logger.experiment.list_artifacts(logger.run_id, "images"))
