"""``lit-ft explain CHECKPOINT PHOTOS`` as a user runs it."""

import os
import re
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from small_runs import small_module, small_trainer

from lit_ft.cli import main
from lit_ft.data import DigitsDataModule
from lit_ft.evaluation.explanations import stage_comparison
from lit_ft.model.module import FineTuneModule
from lit_ft.runs import Run
from lit_ft.unfreezing.callback import GradualUnfreezing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one epoch that began with a solved head, on digits."""
    run = Run(tmp_path_factory.mktemp("logs") / "version_0")
    L.seed_everything(0)
    logger = CSVLogger(run.folder.parent, "", "version_0")
    best = ModelCheckpoint(run.checkpoints, "best")
    unfreezing = GradualUnfreezing("lp_ft", head_fit="solved")
    trainer = small_trainer(1, unfreezing, best, logger=logger, limit_val_batches=1)
    trainer.fit(small_module(lr=0.001), datamodule=DigitsDataModule(shots=4, augment="none"))
    run.config.write_text("{}")
    return run


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path("photos").mkdir()
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(f"photos/{i:02}.png")
    return tmp_path


def checkpoint(folder, **options):
    torch.manual_seed(0)
    module = FineTuneModule("mnist_cnn", weights=None, **{"classes": ["cat", "dog", "owl"], **options})
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**content, "pytorch-lightning_version": L.__version__}, path := folder / "best.ckpt")
    return path


@pytest.mark.long
def test_run_is_explained_before_and_after_with_its_stages(run, photos, capsys, monkeypatch):
    monkeypatch.setattr(stage_comparison, "MOST", 60)
    assert main(["explain", str(run.folder), "photos", "--limit", "3"]) == 0
    html = Path("explain.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 3 * 5
    pairs = re.findall(r"<h3>Grad-CAM for (\d)</h3>.*?before: ([^<]+)<", html, flags=re.S)
    assert len(pairs) == 3
    assert {target for target, _ in pairs} != {"0"}
    # The last class of the caption is the one that is explained, also where another one was predicted.
    assert all(caption.rpartition(" (")[0].split(", ")[-1] == target for target, caption in pairs)
    assert "the linear probe that the run began with" in html
    assert "3 of 12 (--limit), evenly spaced" in html
    assert all(f"<small>{name}.png</small>" in html for name in ("00", "06", "11"))
    out = capsys.readouterr().out
    assert "stage  drift    CKA  accuracy before  accuracy after" in out
    assert out.endswith("Explanations: explain.html; photos: 3 of 12 (--limit), evenly spaced\n")


def test_checkpoint_alone_is_explained_as_far_as_that_goes(photos, capsys):
    best = checkpoint(photos)
    assert main(["explain", str(best), "photos", "--out", "a.html", "--target", "dog"]) == 0
    html = Path("a.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 12 * 3
    assert "Grad-CAM for dog" in html
    out = capsys.readouterr().out
    assert f"Note: no map before fine-tuning: {best} is not in the folder of its run" in out
    assert "Note: stages are not compared: the run began with random weights" in out
    assert "stages are not probed: the checkpoint names no data of lit_ft" in out


@pytest.mark.parametrize(("task", "classes"), [("multilabel", ["sun", "sea"]), ("regression", ["year"])])
def test_labels_and_numbers_are_explained(photos, task, classes):
    assert main(["explain", str(checkpoint(photos, task=task, classes=classes)), "photos/00.png"]) == 0
    html = Path("explain.html").read_text()
    assert any(f"Grad-CAM for {name}" in html for name in classes)


def test_photos_of_more_bits_than_the_model_takes_are_counted_in_a_warning(photos):
    Image.fromarray(np.full((30, 40), 9000, np.uint16)).save("deep.png")
    with pytest.warns(
        UserWarning, match=r"1 of 2 images have more than 8 bits of three colours, such as deep.png of 16"
    ):
        assert main(["explain", str(checkpoint(photos)), "photos/00.png", "deep.png"]) == 0


def test_unreadable_photos_are_told_and_the_others_explained(photos, capsys):
    best, methods = str(checkpoint(photos)), ("--methods", "grad_cam")
    Path("photos/text.jpg").write_text("no image")
    os.truncate("photos/03.png", 60)
    assert main(["explain", best, "photos", *methods]) == 0
    assert capsys.readouterr().out.endswith("photos: 13, 2 unreadable\n")
    html = Path("explain.html").read_text()
    assert html.count("cannot be read as an image") == 2
    assert "Integrated" not in html
    assert main(["explain", best, "photos/text.jpg", "--overwrite"]) == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["{best}"], "the following arguments are required: PHOTOS (see lit-ft explain --help)"),
        (["{best}", "nowhere"], "PHOTOS: nowhere does not exist"),
        (["{best}", "photos", "--out", "a.png"], "--out: a.png must end in .html"),
        (["{best}", "photos", "--out", "there.html"], "--out: there.html exists; name another file, or to overwrite"),
        (["{best}", "photos", "--limit", "0"], "--limit: must be at least 1, got 0"),
        (["{best}", "photos", "--target", "dgo"], "--target: unknown class 'dgo'; nearest: dog"),
        (["{best}", "photos", "--methods", "gradcam"], "--methods: unknown method 'gradcam'; nearest: grad_cam"),
        (["{best}", "photos", "--methods", "attention_rollout"], "--methods: attention_rollout needs tokens that all"),
        (["{best}", "photos", "--device", "cuda:9"], "--device: cuda:9 cannot be used"),
        (["gone.ckpt", "photos"], "CHECKPOINT: no such file: gone.ckpt"),
        (["photos", "photos"], "CHECKPOINT: photos is no run, as it has no folder checkpoints; name one"),
        (["photos/00.png", "photos"], "CHECKPOINT: photos/00.png is not a checkpoint, or it is damaged"),
    ],
)
def test_mistake_ends_in_a_line_and_writes_nothing(photos, capsys, args, line):
    best = checkpoint(photos)
    Path("there.html").write_text("mine")
    before = sorted(photos.rglob("*"))
    assert main(["explain", *(arg.format(best=best) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lit-ft: {line}")
    assert error.count("\n") == 1
    assert Path("there.html").read_text() == "mine"
    assert sorted(photos.rglob("*")) == before


def test_missing_captum_is_told_before_anything_is_computed(photos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert main(["explain", str(checkpoint(photos)), "photos"]) == 2
    assert "needs captum; run: pip install 'lit_ft[explain]'" in capsys.readouterr().err
    assert not Path("explain.html").exists()
