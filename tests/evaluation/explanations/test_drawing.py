"""Photos with their evidence as colours."""

import numpy as np
import pytest
import torch
from PIL import Image

from lit_ft.evaluation.explanations.drawing import SIDE, draw_evidence, draw_small, legend, scale_evidence
from lit_ft.evaluation.explanations.maps import Explanation
from lit_ft.model.prediction import Prediction


def explanation(values, size=(100, 200), method="grad_cam"):
    """A map that lies in the middle square of a photo."""
    height, width = size
    left = (width - height) / 2
    return Explanation("rose", Prediction(), {method: values}, size, (0.0, left, float(height), left + height))


def test_evidence_is_bright_where_it_is_and_the_rest_dark():
    values = np.zeros((10, 10), np.float32)
    values[6:8, 2:4] = 5.0
    drawn = np.asarray(draw_evidence(Image.new("RGB", (200, 100), (128, 128, 128)), explanation(values), "grad_cam"))
    assert drawn.shape == (100, 200, 3)
    brightness = drawn.astype(float).mean(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 58 <= row < 82
    assert 50 + 18 <= column < 50 + 42
    assert (brightness[:, :50] == round(0.3 * 128)).all()
    assert (brightness[:, 150:] == round(0.3 * 128)).all()
    assert 60 < brightness[10, 60] < 128  # seen, without evidence


def test_small_photo_keeps_its_shape_and_gets_three_colours():
    assert draw_small(torch.zeros(3, 600, 900, dtype=torch.uint8)).size == (SIDE, round(SIDE * 2 / 3))
    assert draw_small(torch.zeros(3, 2000, 3, dtype=torch.uint8)).size == (1, SIDE)
    grey = draw_small(torch.full((1, 30, 40), 90, dtype=torch.uint8))  # enlarged
    assert (grey.size, grey.mode, grey.getpixel((5, 5))) == ((SIDE, SIDE * 3 // 4), "RGB", (90, 90, 90))


def test_scale_is_from_nothing_to_the_most_and_leaves_out_what_speaks_against():
    values = np.array([[-4.0, 0.0], [1.0, 2.0]], np.float32)
    assert scale_evidence(values, "grad_cam").tolist() == [[0, 0], [0.5, 1.0]]
    shares = np.array([[0.2, 0.3], [0.25, 0.4]], np.float32)
    assert scale_evidence(shares, "attention_rollout").ravel().tolist() == pytest.approx([0, 0.5, 0.25, 1.0], abs=1e-6)
    assert not scale_evidence(np.zeros((2, 2), np.float32), "grad_cam").any()


def test_gradients_of_single_pixels_are_blurred():
    values = np.zeros((200, 200), np.float32)
    values[100, 100] = 9.0
    found = scale_evidence(values, "integrated_gradients")
    assert found[100, 104] > 0.3  # 4 is the deviation
    assert found.max() == 1.0
    assert found[100, 130] == 0.0


def test_legend_begins_dark_and_ends_bright():
    colours = [int(part[1:], 16) for part in legend().removesuffix(")").split(",")[1:]]
    assert colours[0] < 0x101010
    assert colours[-1] > 0xF0F000
    assert len(colours) == 9
