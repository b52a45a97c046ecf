"""The axis of the bands: by the number that is known, by what the arrays of a set share, and else by the shape."""

import numpy as np
import pytest
import torch

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule
from lit_ft.data.bands.npy import format_doubt
from lit_ft.data.bands.reader import BandReader, count_bands
from lit_ft.errors import UserError


def save_all(tmp_path, shapes):
    paths = [tmp_path / f"{place:02d}.npy" for place in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        np.save(path, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    return paths


@pytest.mark.parametrize(
    ("shape", "count", "first"),
    [
        ((45, 5, 5), 5, False),
        ((45, 5, 5), 45, True),
        ((4, 40, 5), 5, False),
        ((4, 40, 5), 4, True),
        ((9, 12, 32), 32, False),
        ((5, 40, 9), 9, False),
        ((5, 7, 5), 5, False),  # both have that number
    ],
)
def test_axis_with_the_number_of_bands_that_is_known_is_that_of_the_bands(tmp_path, shape, count, first):
    (path,) = save_all(tmp_path, [shape])
    values = torch.from_numpy(np.load(path))
    wanted = values if first else values.permute(2, 0, 1)
    assert torch.equal(BandReader("all", count)(path), wanted)
    assert torch.equal(BandReader("all", count).of_picture(values.numpy()), wanted)


def test_other_number_is_refused_with_the_reading(tmp_path):
    (path,) = save_all(tmp_path, [(9, 12, 32)])
    reason = r"it has 9 bands, its shape \(9, 12, 32\) read as \(C, H, W\), and 5 are expected of each image"
    with pytest.raises(UserError, match=reason):
        BandReader("all", 5)(path)
    with pytest.raises(UserError, match=r"it has 1 band, its shape \(6, 5\) read as \(H, W\), and 5 are expected"):
        BandReader("all", 5).of_picture(np.ones((6, 5)))


@pytest.mark.parametrize(
    ("shapes", "number"),
    [
        ([(9, 12, 32), (20, 12, 32), (40, 64, 32)], 32),
        ([(9, 12, 32), (9, 14, 40)], 9),
        ([(32, 12, 9), (32, 12, 20)], 32),
        ([(64, 80, 3), (64, 80, 4)], 3),  # the first leaves no doubt
    ],
)
def test_axis_in_which_all_arrays_agree_is_that_of_the_bands(tmp_path, shapes, number):
    assert count_bands(save_all(tmp_path, shapes)) == number


def test_array_that_may_be_read_either_way_is_warned_of(tmp_path):
    line = (
        "`data.bands`: (9, 12, 32) read as (C, H, W): 9 bands; if it is (H, W, C) with 32, save TIFF: "
        "tifffile.imwrite(FILE, values, photometric='minisblack', planarconfig='contig')"
    )
    paths = save_all(tmp_path, [(9, 12, 32)] * 2)
    assert count_bands(paths) == 9
    assert (format_doubt(paths, "all"), format_doubt(paths, (4,))) == (line, line)
    paths = save_all(tmp_path, [(9, 12, 32), (20, 12, 32)])  # which agree in 32, of which numbers know nothing
    assert (format_doubt(paths, "all"), format_doubt(paths, (4,))) == ("", line)
    other = format_doubt(save_all(tmp_path, [(32, 12, 9)]), "all")
    assert "9 bands; if it is (C, H, W) with 32, " in other
    assert other.endswith("planarconfig='separate')")


def test_fit_warns_once_of_arrays_that_may_be_read_either_way(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        save_all(tmp_path / name, [(9, 12, 32)] * 4)
    data = ImageFolderDataModule(root=str(tmp_path), bands="all", test_fraction=0.0, spec=InputSpec(32, 32))
    with pytest.warns(UserWarning, match=r"^`data.bands`: \(9, 12, 32\) read as \(C, H, W\): 9 bands; if"):
        data.prepare_data()
    data.setup("fit")  # as warnings are errors, it gives none


@pytest.mark.parametrize(
    "shape", [(4, 6, 5), (12, 64, 48), (3, 224, 672), (480, 512, 3), (9, 9, 200), (200, 9, 9), (7, 7, 7)]
)
def test_usual_shape_is_not_warned_of(tmp_path, shape):
    paths = save_all(tmp_path, [shape] * 2)
    assert (format_doubt(paths, "all"), count_bands(paths)) == ("", len(BandReader("all")(paths[0])))


@pytest.mark.parametrize(("layout", "shape"), [("contig", (9, 12, 32)), ("separate", (32, 12, 9))])
def test_tiff_that_the_warning_advises_has_the_other_bands(tmp_path, layout, shape):
    import tifffile

    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig=layout)
    assert BandReader("all")(tmp_path / "a.tif").shape == (32, *sorted((9, 12), reverse=layout == "separate"))
