import json
import math

import pytest

from lit_ft.model.prediction import Prediction
from lit_ft.serving.answers import Explained, Refusal, respond

UNKNOWN = {"unsure": None, "unlike_training": None}


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (
            Prediction("cat", 0.75, [("cat", 0.75), ("dog", 0.25)]),
            {
                "label": "cat",
                "probability": 0.75,
                "top_k": [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.25}],
                "label_set": None,
                **UNKNOWN,
            },
        ),
        (
            Prediction("cat", 0.5, [("cat", 0.5)], label_set=["cat", "dog"], unsure=True, unlike_training=False),
            {
                "label": "cat",
                "probability": 0.5,
                "top_k": [{"label": "cat", "probability": 0.5}],
                "label_set": ["cat", "dog"],
                "unsure": True,
                "unlike_training": False,
            },
        ),
        (
            Prediction(top_k=[("red", 0.9), ("big", 0.2)], labels=["red"]),
            {
                "labels": ["red"],
                "top_k": [{"label": "red", "probability": 0.9}, {"label": "big", "probability": 0.2}],
                **UNKNOWN,
            },
        ),
        (
            Prediction(values={"age": 41.5, "mass": math.nan}, unlike_training=True),
            {"values": {"age": 41.5, "mass": None}, "unsure": None, "unlike_training": True},
        ),
        (
            Prediction("a\udc80b", math.nan, [("a\udc80b", math.inf)]),  # as a folder may be named
            {
                "label": "a\\udc80b",
                "probability": None,
                "top_k": [{"label": "a\\udc80b", "probability": None}],
                "label_set": None,
                **UNKNOWN,
            },
        ),
    ],
    ids=["multiclass", "calibrated", "multilabel", "regression", "not finite, no UTF-8"],
)
def test_prediction_of_each_task_as_json(found, answer):
    response = respond(found)
    assert (response.status_code, response.media_type) == (200, "application/json")
    assert json.loads(response.body) == answer


@pytest.mark.parametrize(
    ("target", "picture", "answer"),
    [
        ("a\udc80<b>", "/9j/", {"target": "a\\udc80<b>", "picture": "data:image/jpeg;base64,/9j/"}),
        (None, None, {"target": None, "picture": None}),
    ],
)
def test_explanation_is_added_to_the_prediction(target, picture, answer):
    prediction = Prediction("cat", 0.5, [("cat", 0.5)])
    content = json.loads(respond(Explained(prediction, "grad_cam", target, picture)).body)
    assert content.pop("explanation") == {"method": "grad_cam", **answer}
    assert content == json.loads(respond(prediction).body)


def test_refusal_has_its_status_and_reason():
    response = respond(Refusal(422, "no image"))
    assert (response.status_code, json.loads(response.body)) == (422, {"detail": "no image"})
