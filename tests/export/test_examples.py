"""The images in exported files."""

import pytest
import torch

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.errors import UserError
from lit_ft.export.examples import choose_rows, draw_images, read_examples, read_folder, shrink_examples


def test_rows_are_spread_over_classes():
    targets = torch.tensor([2, 0, 1] * 5)
    assert sorted(set(targets[choose_rows(targets, 8)].tolist())) == [0, 1, 2]
    assert choose_rows(torch.zeros(3, 2), 8) == [0, 1, 2]  # no class: numbers or labels


def test_examples_have_sizes_near_that_of_the_network_and_both_forms():
    spec = InputSpec(28, 32)
    images = [torch.zeros(3, 300, 200, dtype=torch.uint8), torch.zeros(3, 9, 900, dtype=torch.uint8)] * 4
    shapes = [tuple(image.shape[1:]) for image in shrink_examples(images, spec)]
    assert shapes[0] == (32, 32)  # not resized again
    assert {min(shape) for shape in shapes} == {16, 24, 32, 40}
    assert {height > width for height, width in shapes if height != width} == {True, False}
    assert max(map(max, shapes)) <= 44


def test_grey_arrays_get_the_channels_of_the_file():
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    split = ArraySplit(images, torch.tensor([1]), torch.tensor([0]))
    (found,) = read_examples(split, 3)
    assert torch.equal(found, images[1].expand(3, -1, -1))


def test_drawn_images_are_the_same_each_time_and_differ_from_each_other():
    first, *others = draw_images(3, 32)
    assert torch.equal(first, draw_images(3, 32)[0])
    assert not any(torch.equal(first, other) for other in others)
    assert first.float().std() > 20


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--examples: no images in"):
        read_folder(str(tmp_path), "--examples")
