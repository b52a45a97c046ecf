import re

import numpy as np
import pytest

from lit_ft.data.arrays import pixels
from lit_ft.data.arrays.pixels import channels_first, order_channels, to_bytes
from lit_ft.errors import UserError


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 7, 1), (2, 5, 7, 3), (2, 1, 5, 7), (2, 3, 5, 7)])
def test_layouts_have_their_channels_first(shape):
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    ordered = order_channels(images)
    assert ordered.shape == channels_first(shape, "k", "x") == (2, 3 if 3 in shape else 1, 5, 7)
    last = images.reshape(2, 5, 7, 1) if 3 not in shape else images if shape[3] == 3 else images.transpose(0, 2, 3, 1)
    assert np.array_equal(ordered.transpose(0, 2, 3, 1), last)
    assert np.shares_memory(ordered, images)


@pytest.mark.parametrize("shape", [(2,), (2, 784), (2, 5, 7, 2), (2, 4, 5, 7), (2, 1, 5, 7, 3), (2, 1, 7)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=rf"^k: x is of shape {re.escape(str(shape))}; images are \(N, H, W\), or"):
        channels_first(shape, "k", "x")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_fractions_are_scaled_and_rounded(dtype, monkeypatch):
    monkeypatch.setattr(pixels, "_PART", 1)  # an image at a time
    images = (np.arange(3 * 4).reshape(3, 1, 2, 2) / 11).astype(dtype)
    expected = np.rint(images.astype(np.float32) * 255)
    assert np.array_equal(to_bytes(images, "k", "x").numpy(), expected)
    assert expected.max() == 255


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.int8, bool])
def test_other_types_are_refused(dtype):
    with pytest.raises(UserError, match=r"k: x is of type \w+; images are uint8, or float from 0 to 1;.*astype\('u"):
        to_bytes(np.zeros((2, 1, 4, 4), dtype), "k", "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "x has values that are no numbers, first in image 2; fix them"),
        (np.inf, "x has values that are no numbers, first in image 2"),
        (-0.1, "x is float with values from -0.1 to 0; .*; save them before they are normalised"),
        (255, r"x is float with values from 0 to 255; .*; save them with .astype\('uint8'\)"),
        (4095, "x is float with values from 0 to 4095; images are uint8, or float from 0 to 1$"),
    ],
)
def test_floats_beyond_one_are_refused(value, message):
    images = np.zeros((3, 1, 4, 4))
    images[2, 0, 1, 1] = value
    with pytest.raises(UserError, match=f"^k: {message}"):
        to_bytes(images, "k", "x")
