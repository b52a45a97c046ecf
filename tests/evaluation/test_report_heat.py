"""Heat maps of mistakes in a report."""

import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from evidence import centre_detector
from PIL import Image
from small_runs import FewDigits

from lit_ft.errors import UserError
from lit_ft.evaluation import report_heat
from lit_ft.evaluation.report_heat import explain_mistakes
from lit_ft.evaluation.report_images import ShownImage
from lit_ft.runs import Run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose model sees white where pixels are white."""
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.checkpoint("best").touch()
    monkeypatch.setattr(report_heat, "load", lambda path: centre_detector())
    return run


def mistake(path, guess="white"):
    return ShownImage(str(path), "black", f"{guess} (90%)", "2.3", "test", guess)


def decoded(picture):
    return np.asarray(Image.open(BytesIO(base64.b64decode(picture))), int)


def test_each_mistake_shows_the_evidence_for_the_class_that_was_predicted(run, tmp_path):
    for name, place in (("left", 40), ("right", 160)):
        pixels = np.zeros((280, 280, 3), np.uint8)
        pixels[100:160, place : place + 60] = 255
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in ("left", "right", "left")] * 4  # more than pass at once
    (tmp_path / "text.jpg").write_text("no image")
    found = explain_mistakes(
        run, None, [*map(mistake, paths), mistake(tmp_path / "gone.png"), mistake(tmp_path / "text.jpg")]
    )
    assert set(found.pictures) == {str(tmp_path / "left.png"), str(tmp_path / "right.png")}
    left, right = (decoded(found.pictures[str(tmp_path / f"{name}.png")]) for name in ("left", "right"))
    assert left.shape == (160, 160, 3)
    # Of 280 pixels 160 are left, so that the boxes are 23 to 57 and 91 to 126.
    for picture, inside, outside in ((left, 40, 108), (right, 108, 40)):
        assert picture[74, inside, 0] > 200
        assert picture[74, outside].max() < 60
    assert "gradient" in found.colours
    assert found.note == ""


def test_images_in_memory_are_found_by_their_number(run):
    data = FewDigits()
    data.setup()
    data.splits["test"].images[data.splits["test"].rows[2]] = 255
    assert list(explain_mistakes(run, data, [mistake("2")]).pictures) == ["2"]
    assert explain_mistakes(run, None, [mistake("2")]).pictures == {}


def test_nothing_is_explained_where_nothing_can_be(run, tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), "white").save(photo := tmp_path / "white.png")
    assert explain_mistakes(run, None, [mistake(photo)]).pictures
    assert explain_mistakes(run, None, [mistake(photo, "black")]).pictures == {}  # for which nothing speaks
    assert explain_mistakes(run, None, [mistake(photo, "a class of before")]).pictures == {}
    assert explain_mistakes(run, None, [ShownImage(str(photo), "3.5", "4", "1", "test")]).pictures == {}
    monkeypatch.setattr(report_heat, "choose_quick_method", lambda model: "attention_rollout")
    assert explain_mistakes(run, None, [mistake(photo)]).pictures == {}
    run.checkpoint("best").unlink()
    monkeypatch.setattr(report_heat, "load", None)
    assert explain_mistakes(run, None, [mistake(photo)]).pictures == {}


def test_model_that_cannot_be_loaded_is_noted(run, tmp_path, monkeypatch):
    def fail(path):
        raise UserError("no module named timm")

    monkeypatch.setattr(report_heat, "load", fail)
    found = explain_mistakes(run, None, [mistake(tmp_path / "a.png")])
    assert found.note == "Without heat maps of the mistakes: no module named timm"


def test_caller_without_gradients_gets_them_too(run, tmp_path):
    Image.new("RGB", (40, 40), "white").save(photo := tmp_path / "white.png")
    with torch.no_grad():
        assert explain_mistakes(run, None, [mistake(photo)]).pictures
