import numpy as np
import torch

from lit_ft.data.bands.preview import draw_bands, stretch


def test_each_of_three_bands_is_stretched_between_its_percentiles():
    ramp = torch.arange(101, dtype=torch.float32).view(1, 1, 101)
    values = torch.cat([ramp, 1e6 - 500 * ramp, ramp * 0 + 7, ramp])  # of which the fourth is not shown
    found = stretch(values)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 1, 101))
    row = found[0, 0].tolist()
    assert (row[:3], row[98:], row[50]) == ([0, 0, 0], [255, 255, 255], 128)
    assert found[1, 0].tolist() == row[::-1]
    assert found[2].unique().tolist() == [0]


def test_one_or_two_bands_are_grey():
    values = torch.rand(2, 2, 8, 8)
    found = stretch(values)
    assert found.shape == (2, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(stretch(values[:, :1]), found)
    assert np.asarray(draw_bands(values[0])).shape == (8, 8, 3)


def test_picture_does_not_depend_on_the_units():
    values = torch.rand(4, 9, 9, dtype=torch.float64)
    assert torch.equal(stretch(values), stretch(1000 * values - 300))
