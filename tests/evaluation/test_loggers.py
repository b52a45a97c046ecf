import os
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_ft.evaluation.loggers import find_board, log_figure, log_scalars, takes_figures
from lit_ft.evaluation.tensorboard import BoardLogger


def trainer_of(*loggers, is_first=True):
    return SimpleNamespace(loggers=list(loggers), is_global_zero=is_first)


class Taken(list):
    def __call__(self, *args, **options):
        self.append((*args, options))


@pytest.fixture
def drawn(monkeypatch):
    """The pixels that every figure has."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    monkeypatch.setattr("lit_ft.evaluation.loggers.render", lambda figure: pixels)
    return pixels


def test_picture_goes_to_each_kind_of_logger_in_its_own_way(drawn, tmp_path):
    wandb, board, mlflow = Taken(), Taken(), Taken()
    loggers = [
        SimpleNamespace(log_image=wandb),
        SimpleNamespace(experiment=SimpleNamespace(add_image=board)),
        SimpleNamespace(experiment=SimpleNamespace(log_image=mlflow), run_id="7"),
        CSVLogger(tmp_path),
    ]
    log_figure(trainer_of(*loggers), "val/x", None, 3)
    assert wandb == [("val/x", [drawn], 3, {})]
    assert board == [("val/x", drawn, 3, {"dataformats": "HWC"})]
    assert mlflow == [("7", drawn, {"key": "val/x", "step": 3})]


def test_nothing_is_drawn_or_logged_where_nobody_takes_it(monkeypatch, tmp_path):
    monkeypatch.setattr("lit_ft.evaluation.loggers.render", None)  # would fail
    scalars, wandb = Taken(), Taken()
    taker = SimpleNamespace(log_image=wandb, log_metrics=scalars)
    assert not takes_figures(trainer_of(CSVLogger(tmp_path)))
    assert not takes_figures(trainer_of(taker, is_first=False))
    for trainer in (trainer_of(CSVLogger(tmp_path)), trainer_of(taker, is_first=False), trainer_of()):
        log_figure(trainer, "x", None, 0)
    log_scalars(trainer_of(taker, is_first=False), {"x": 1.0}, 0)
    log_scalars(trainer_of(taker), {}, 0)
    assert (scalars, wandb) == ([], [])


def test_board_is_that_of_the_first_process(tmp_path):
    logger = BoardLogger(tmp_path)
    assert find_board(trainer_of(CSVLogger(tmp_path), logger)) is logger.experiment
    assert find_board(trainer_of(logger, is_first=False)) is None
    logger.finalize("success")


@pytest.mark.filterwarnings("ignore")  # of W&B's own files
def test_wandb_takes_scalars_and_pictures(drawn, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="p")
    log_scalars(trainer_of(logger), {"phase/number": 1.0}, 0)
    log_figure(trainer_of(logger), "val/x", None, 2)
    folder = logger.experiment.dir
    logger.experiment.finish()
    assert [name.partition("_")[0] for name in os.listdir(f"{folder}/media/images/val")] == ["x"]


@pytest.mark.filterwarnings("ignore")  # of MLflow's database
def test_mlflow_takes_scalars_and_pictures(drawn, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/x.db", artifact_location=f"file:{tmp_path}/a")
    log_scalars(trainer_of(logger), {"phase/number": 1.0, "phase/trained_share": 0.5}, 4)
    log_figure(trainer_of(logger), "val/x", None, 2)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.metrics == {"phase/number": 1.0, "phase/trained_share": 0.5}
    assert any("val~x" in file.path for file in logger.experiment.list_artifacts(logger.run_id, "images"))
