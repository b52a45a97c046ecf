"""What exported files say of themselves."""

import json

import numpy as np
import pytest

from lit_ft.errors import UserError
from lit_ft.export.description import Description, Example


def described(channels=3, **options):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    example = Example(pixels, np.array([0.25, 0.75]))
    given = {"examples": [example], "versions": {"lit_ft": "0.1.0"}, **options}
    return Description("multiclass", ["é|<b>", "'dog\n"], channels, "mnist_cnn", [1e-3, 1e-3], **given)


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_description_is_read_as_it_was_written(channels):
    given = described(channels)
    found = Description.from_metadata(given.metadata(), "a.onnx")
    assert (found.task, found.classes, found.channels) == (given.task, given.classes, channels)
    assert found.tolerance == given.tolerance
    assert np.array_equal(found.examples[0].pixels, given.examples[0].pixels)
    assert found.examples[0].outputs.tolist() == [0.25, 0.75]


def test_metadata_are_text_that_other_programs_read():
    metadata = described().metadata()
    assert json.loads(metadata["classes"]) == ["é|<b>", "'dog\n"]
    assert metadata["input"].startswith("images: uint8 (B, H, W, 3), RGB")
    assert metadata["lit_ft"] == "0.1.0"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": "["}, r"a\.onnx: its metadata are damaged"),
        ({"classes": '["one"]'}, "2 tolerances for 1 classes"),
        ({"channels": "x"}, "damaged"),
        ({"examples": '[{"png": "?", "shape": [1, 1, 3], "outputs": []}]'}, "damaged"),
        ({"examples": '[{"png": "aGVsbG8=", "shape": [1, 1, 3], "outputs": [1, 2]}]'}, "damaged"),
        ({"tolerance": None}, r"no 'tolerance'"),
    ],
)
def test_damaged_metadata_are_refused(changes, text):
    metadata = {key: value for key, value in {**described().metadata(), **changes}.items() if value is not None}
    with pytest.raises(UserError, match=text):
        Description.from_metadata(metadata, "a.onnx")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"examples": "[]"}, "no examples"),
        ({"farthest": "0.5"}, "distances without a bound, or a bound without distances"),
        ({"units": "["}, "damaged"),
        ({"distance_tolerance": "x"}, "damaged"),
    ],
)
def test_distances_and_bound_must_fit(changes, text):
    with pytest.raises(UserError, match=text):
        Description.from_metadata(described().metadata() | changes, "a.onnx")


def test_distances_and_units_are_read_as_they_were_written():
    given = described(farthest=0.5, units={"mean": [1.0, 2.0], "scale": [3.0, 4.0]})
    given.examples[0] = Example(given.examples[0].pixels, given.examples[0].outputs, 0.25)
    found = Description.from_metadata(given.metadata() | {"label_smoothing": "0.1"}, "a.onnx")  # of an earlier version
    assert (found.farthest, found.examples[0].distance) == (0.5, 0.25)
    assert found.units == given.units
    assert found.output_format.endswith("; distance: (B,), an image is unlike those of the training above 0.5")


def test_examples_that_do_not_fit_are_refused():
    metadata = described().metadata() | {"channels": "4"}
    with pytest.raises(UserError, match="examples without 4 channels"):
        Description.from_metadata(metadata, "a.onnx")


def test_file_of_another_program_is_refused():
    with pytest.raises(UserError, match=r"a\.onnx: was not written by lit-ft export"):
        Description.from_metadata({"classes": "[]"}, "a.onnx")
