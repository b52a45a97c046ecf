import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from lit_ft.evaluation.explanations.maps import Explanation
from lit_ft.model.prediction import Prediction
from lit_ft.serving import heat_map
from lit_ft.serving.heat_map import explain_photo


@pytest.fixture
def explained(monkeypatch):
    """What is made of a map ``(2, 2)`` of a photo, black, twice as wide as it is high, and seen in its middle."""

    def explain(values, method="grad_cam"):
        prediction = Prediction("cat", 0.5, [("cat", 0.5), ("dog", 0.3), ("owl", 0.2)])
        found = Explanation("cat", prediction, {method: np.array(values, np.float32)}, (10, 20), (0, 5, 10, 15))
        monkeypatch.setattr(heat_map, "explain_image", lambda *_: found)
        return explain_photo(None, torch.zeros(3, 10, 20, dtype=torch.uint8), method, top_k=2)

    return explain


def test_picture_is_the_photo_with_its_evidence(explained):
    found = explained([[0, 0], [0, 1]])
    assert (found.method, found.target, len(found.prediction.top_k)) == ("grad_cam", "cat", 2)
    picture = np.asarray(Image.open(BytesIO(base64.b64decode(found.picture))), int)
    assert picture.shape == (112, 224, 3)
    assert picture[100, 160].sum() > 300  # the corner of the map with the evidence
    assert picture[10, 64].sum() < 30
    assert picture[100, 190].sum() < 30  # outside of what is seen


@pytest.mark.parametrize("values", [0.0, np.nan])
def test_there_is_no_picture_where_nothing_speaks_for_the_class(explained, values):
    assert explained(np.full((2, 2), values)).picture is None


def test_attention_speaks_for_no_class(explained):
    assert explained([[0.1, 0.2], [0.3, 0.4]], "attention_rollout").target is None
