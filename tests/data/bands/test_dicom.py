import numpy as np
import pydicom
import pytest
import torch
from band_files import dicom, numbers
from pydicom.data import get_testdata_file

from lit_ft.data.bands.dicom import name_grey
from lit_ft.data.bands.reader import BandReader
from lit_ft.errors import UserError

ALL = BandReader("all")


def read(tmp_path, content, name="a.dcm"):
    (tmp_path / name).write_bytes(content)
    return ALL(tmp_path / name)


@pytest.mark.parametrize(("dtype", "bits"), [(np.uint16, 16), (np.uint16, 12), (np.int16, 16), (np.uint8, 8)])
def test_stored_numbers_are_rescaled_to_units(tmp_path, dtype, bits):
    values = numbers((6, 5), dtype) >> (16 - bits if bits == 12 else 0)
    found = read(tmp_path, dicom(values, bits=bits, RescaleSlope=2, RescaleIntercept=-1024))
    assert torch.equal(found, torch.from_numpy(values * 2.0 - 1024).float()[None])
    assert torch.equal(read(tmp_path, dicom(values, bits=bits), name="IM0001"), torch.from_numpy(values * 1.0)[None])


@pytest.mark.parametrize(("dtype", "ends"), [(np.uint16, 65535), (np.int16, -1), (np.uint8, 255)])
def test_white_that_is_low_is_inverted(tmp_path, dtype, ends):
    values = numbers((6, 5), dtype)
    found = read(tmp_path, dicom(values, "MONOCHROME1", 8 * values.itemsize))
    assert torch.equal(found[0], torch.from_numpy(ends - values.astype(np.float32)))


@pytest.mark.parametrize(
    ("name", "shape", "low", "high"),
    [
        ("CT_small.dcm", (1, 128, 128), -896, 1167),  # in Hounsfield units; it begins as a TIFF does
        ("MR_small_RLE.dcm", (1, 64, 64), 127, 2145),
        ("examples_palette.dcm", (3, 350, 800), 0, 65280),
        ("SC_rgb_rle_16bit.dcm", (3, 100, 100), 0, 65535),
        ("SC_ybr_full_422_uncompressed.dcm", (3, 100, 100), 0, 255),
    ],
)
def test_files_of_pydicom(name, shape, low, high):
    found = ALL(get_testdata_file(name, download=False))
    assert (found.shape, float(found.min()), float(found.max())) == (shape, low, high)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PixelData": None}, "DICOM without pixels"),
        ({"Rows": 0}, "DICOM without pixels"),
        ({"NumberOfFrames": 3}, "DICOM of 3 frames; write each to a file of its own"),
        ({"Rows": 65_535, "Columns": 65_535}, "its 1 x 65535 x 65535 values are more than 178,956,970"),
        ({"Rows": 10, "Columns": 10}, "pixel data is less than expected"),
        ({"BitsAllocated": 13}, "."),
        (
            {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            "its tags do not fit its pixels: by BitsAllocated 8 there are 2 x 6 x 5, by Rows, .* 6 x 5",
        ),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "its RescaleSlope is 0, by which all"),
    ],
)
def test_file_without_one_whole_image_is_refused(tmp_path, change, reason):
    with pytest.raises(UserError, match=f"a.dcm: cannot be read as an image .*{reason}"):
        read(tmp_path, dicom(numbers((6, 5)), **change))


def test_tests_of_reports_and_compression_that_is_not_read(tmp_path):
    for name, reason in (
        ("rtplan.dcm", "DICOM without pixels"),
        ("JPEGLSNearLossless_16.dcm", r"no decoder of JPEG-LS Lossy \(Near-Lossless\) Image Compression is installed"),
        ("image_dfl.dcm", "deflated DICOM is not read"),
    ):
        with pytest.raises(UserError, match=f"cannot be read as an image .{reason}"):
            ALL(get_testdata_file(name, download=False))
    with pytest.raises(UserError, match="it is no DICOM file"):
        read(tmp_path, b"nothing of the kind")


def test_private_elements_are_passed_over(tmp_path):
    data = pydicom.dcmread(get_testdata_file("MR_small.dcm", download=False))
    data.add_new(0x00090010, "LO", "lit_ft")
    data.add_new(0x00091001, "UN", b"\xff" * 100)
    data.save_as(tmp_path / "a.dcm")
    assert ALL(tmp_path / "a.dcm").shape == (1, 64, 64)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_is_named_by_the_header(tmp_path, kind):
    (tmp_path / "a.dcm").write_bytes(dicom(numbers((6, 5)), kind))
    assert name_grey(tmp_path / "a.dcm") == kind
    assert name_grey(get_testdata_file("examples_palette.dcm", download=False)) == ""
