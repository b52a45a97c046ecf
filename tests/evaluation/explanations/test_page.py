"""The page of explanations."""

import base64
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lit_ft.evaluation.explanations.maps import Explanation
from lit_ft.evaluation.explanations.page import ShownPhoto, draw_photo, format_prediction, render_explanations
from lit_ft.evaluation.explanations.transfer import StageChange, Transfer
from lit_ft.model.prediction import Prediction

HOSTILE = "<script>alert('1')</script>"


def explanation(probability=0.75, target="rose", values=1.0, path="a.jpg"):
    top_k = sorted([("rose", probability), (HOSTILE, 1 - probability)], key=lambda pair: -pair[1])
    prediction = Prediction(*top_k[0], top_k=top_k, path=path)
    maps = {name: np.full((8, 8), values, np.float32) for name in ("grad_cam", "integrated_gradients")}
    return Explanation(target, prediction, maps, (30, 40), (0.0, 5.0, 30.0, 35.0))


def image():
    return torch.full((3, 30, 40), 200, dtype=torch.uint8)


def test_photo_has_each_map_before_and_after():
    shown = draw_photo(image(), explanation(0.4), explanation(0.75))
    assert list(shown.maps) == ["Grad-CAM for rose", "Integrated gradients for rose"]
    before, after = shown.maps["Grad-CAM for rose"]
    assert before.caption == f"before: {HOSTILE} (60%), rose (40%)"
    assert after.caption == "after: rose (75%)"
    assert (before.alt, after.alt) == ("Grad-CAM for rose before", "Grad-CAM for rose after")
    picture = Image.open(BytesIO(base64.b64decode(after.data)))
    assert (picture.size, picture.getexif()) == ((224, 168), {})


def test_photo_that_is_unsure_or_unlike_those_known_is_told_so():
    one = explanation(0.75)
    assert draw_photo(image(), None, one).picture.caption == "rose (75%)"
    unsure = replace(one, prediction=replace(one.prediction, unsure=True, unlike_training=True))
    caption = draw_photo(image(), unsure, unsure).picture.caption
    assert caption == "rose (75%); unsure; unlike the validation images"


def test_attention_is_of_no_class():
    rolled = replace(explanation(), maps={"attention_rollout": np.eye(8, dtype=np.float32)})
    assert list(draw_photo(image(), None, rolled).maps) == ["Attention rollout"]


def test_photo_without_a_model_before_has_one_map_and_no_evidence_is_told():
    shown = draw_photo(image(), None, explanation(values=0.0))
    (only,) = shown.maps["Grad-CAM for rose"]
    assert only.caption == "rose (75%); no evidence"


@pytest.mark.parametrize(
    ("prediction", "text"),
    [
        (Prediction(top_k=[("rose", 0.9), ("tree", 0.2)], labels=["rose"]), "rose (90%)"),
        (Prediction(values={"rose": 1987.25, "tree": 2.0}), "rose (1987)"),
        (Prediction("rose", 0.5, [("rose", 0.5), ("tree", 0.5)]), "rose (50%)"),
    ],
)
def test_predictions_of_all_tasks_are_told(prediction, text):
    assert format_prediction(Explanation("rose", prediction, {}, (1, 1), (0, 0, 1, 1))) == text


def test_page_is_one_file_without_scripts_or_anything_from_elsewhere():
    hostile = explanation(0.2, HOSTILE, path=f"photos/{HOSTILE}.jpg")
    photos = [draw_photo(image(), explanation(0.4), hostile), ShownPhoto(f"b{HOSTILE}.jpg", error=f"bad {HOSTILE}")]
    transfer = Transfer([StageChange(HOSTILE, 0.5, 0.9, 0.1, 0.2)], "200 validation images", "accuracy", [HOSTILE])
    html = render_explanations({"checkpoint": HOSTILE}, photos, ["grad_cam", "integrated_gradients"], transfer)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 8
    assert not re.search(r"(src|href)=['\"](?!data:)", html)
    assert "url(" not in html
    assert html.count("data:image/jpeg;base64,") == 5
    assert html.count(" alt=") == 5
    assert "<svg" in html
    assert "Features of 200 validation images; linear probes are cross-validated on them." in html
    assert "tabindex='0'" in html


def test_page_without_a_comparison_has_the_photos_alone():
    html = render_explanations(
        {}, [draw_photo(image(), None, explanation())], ["grad_cam"], Transfer([], notes=["why"])
    )
    assert "<svg" not in html
    assert "<li>why</li>" in html
    assert "Grad-CAM" in html
    assert "stage by stage" not in html
