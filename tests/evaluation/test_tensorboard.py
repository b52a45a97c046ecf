import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from small_runs import FewDigits, small_module
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from lit_ft.evaluation import tensorboard
from lit_ft.evaluation.tensorboard import BoardLogger, build_layout, collect_params, log_layout, write_projector
from lit_ft.unfreezing.callback import GradualUnfreezing


def test_no_epoch_is_logged(tmp_path):
    logger = BoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    logger.log_hyperparams({"a": 1})
    logger.log_metrics({"epoch": 1, "loss": 0.5}, step=3)
    logger.finalize("success")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == ["loss"]


def test_file_is_made_when_something_is_logged(tmp_path):
    logger = BoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    logger.log_hyperparams({"a": 1})
    writer = logger.experiment
    logger.save()
    assert list(tmp_path.iterdir()) == []
    writer.add_scalar("loss", 0.5, 3)
    assert isinstance(logger.experiment, SummaryWriter)
    assert writer.file_writer is logger.experiment.file_writer
    logger.save()
    assert sorted(path.name.partition(".")[0] for path in tmp_path.iterdir()) == ["events", "hparams"]
    logger.finalize("success")


def test_file_is_flushed_once_a_second_and_in_the_end(tmp_path, monkeypatch):
    now, flushed = [50.0], []
    monkeypatch.setattr(tensorboard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    logger = BoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    logger.log_hyperparams({"a": 1})
    monkeypatch.setattr(logger.open(), "flush", lambda: flushed.append(now[0]))
    for _ in range(4):
        logger.save()
        now[0] += 0.4
    assert flushed == [50.0, pytest.approx(51.2)]
    assert (tmp_path / "hparams.yaml").read_text() == "a: 1\n"
    logger.finalize("success")
    assert len(flushed) >= 3


@pytest.mark.parametrize(("task", "main"), [("multiclass", "acc"), ("multilabel", "f1"), ("regression", "mse")])
def test_charts_have_train_and_val_and_of_several_phases_what_trains(task, main):
    charts = build_layout(task, 2)["Run"]
    assert list(charts) == ["loss", main, "learning rates", "drift from the pretrained weights"]
    tags = [f"train/{main}", f"val/{main}", f"val/{main}_top5", "phase/trained_share", "lr/head", "drift/stem"]
    shown = [tag for tag in tags if any(re.search(pattern, tag) for pattern in charts[main][1])]
    assert shown == [f"train/{main}", f"val/{main}", "phase/trained_share"]
    assert charts["learning rates"][1] == ["^lr/"]
    assert len(build_layout(task, 1)["Run"]["loss"][1]) == 2


def test_layout_and_table_of_hyperparameters_are_in_the_file(tmp_path):
    logger = BoardLogger(tmp_path, name="", version="")
    log_layout(logger.experiment, "multiclass", 1, {"strategy": "full", "seed": 3})
    logger.finalize("success")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert board.Tags()["scalars"] == []
    [event] = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [chart.title for chart in layout.category[0].chart][:2] == ["loss", "acc"]
    content = board.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert all(name in content for name in (b"strategy", b"seed", b"val_best/loss", b"test/acc"))


def test_hyperparameters_tell_runs_apart():
    module = small_module(weights=None, lr=0.5, lr_decay=0.25)
    trainer = SimpleNamespace(
        datamodule=FewDigits(batch_size=7, augment="trivial"), callbacks=[GradualUnfreezing("lp_ft")], max_epochs=9
    )
    assert collect_params(trainer, module) == {
        "backbone": "mnist_cnn",
        "strategy": "lp_ft",
        "lr": 0.5,
        "lr_decay": 0.25,
        "epochs": 9,
        "batch_size": 7,
        "augment": "trivial",
    }


def test_projector_has_a_row_a_point_and_sprites_row_by_row(tmp_path):

    sprites = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 4) * 50
    table = [["class", "predicted"], *([f"a\tb\n{i}", "c"] for i in range(5))]
    write_projector(tmp_path, torch.arange(10.0).view(5, 2) / 3, table, sprites)
    place = tmp_path / "projector"
    assert (place / "features.tsv").read_text().splitlines()[1] == "0.6667\t1"
    assert (place / "images.tsv").read_text().splitlines()[:2] == ["class\tpredicted", "a b 0\tc"]
    with Image.open(place / "sprites.jpg") as image:
        assert image.size == (12, 12)
        shades = [image.getpixel((4 * (i % 3) + 1, 4 * (i // 3) + 1))[0] for i in range(6)]
        assert shades == pytest.approx([0, 50, 100, 150, 200, 0], abs=12)  # a JPEG, of blocks of 8 pixels
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "projector/features.tsv"' in config
    assert 'image_path: "projector/sprites.jpg"' in config
