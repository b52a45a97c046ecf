import io
import pickle
import re
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from band_files import numbers, save_tiff
from PIL import Image

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data.bands.reader import BandReader, count_bands, name_format, refuse_missing_bands
from lit_ft.errors import UserError

ALL = BandReader("all")


def save(path, values):
    np.save(path, values)
    return path


def expected(values):
    return torch.from_numpy(values.astype(np.float32)).movedim(-1, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float16, np.bool_, ">u2", np.int32])
def test_array_keeps_its_values(tmp_path, dtype):
    values = numbers(dtype=np.int16).astype(dtype)
    found = ALL(save(tmp_path / "a.npy", values))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected(values))
    assert torch.equal(ALL(io.BytesIO((tmp_path / "a.npy").read_bytes()), "upload"), found)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((6, 5), (1, 6, 5)),
        ((6, 5, 4), (4, 6, 5)),
        ((4, 6, 5), (4, 6, 5)),
        ((9, 9, 200), (200, 9, 9)),  # a square with more bands than rows
        ((200, 9, 9), (200, 9, 9)),
        ((7, 7, 7), (7, 7, 7)),
        ((1, 6, 5), (1, 6, 5)),
        ((6, 5, 1), (1, 6, 5)),
    ],
)
def test_bands_of_an_array_are_told_by_its_shape(tmp_path, shape, found):
    values = np.arange(np.prod(shape)).reshape(shape)
    read = ALL(save(tmp_path / "a.npy", values))
    assert read.shape == found
    last = values if len(shape) == 2 else values[..., 0] if found[0] == shape[-1] else values[0]
    assert torch.equal(read[0], torch.from_numpy(last.astype(np.float32)))


def test_bands_are_chosen_by_number_in_their_order(tmp_path):
    values = numbers()
    path = save_tiff(tmp_path / "a.tif", values)
    assert torch.equal(BandReader((4, 1))(path), expected(values)[[3, 0]])
    assert torch.equal(BandReader((1, 2, 3, 4))(path), expected(values))
    assert BandReader.of(InputSpec()) is None
    spec = InputSpec(bands="all", mean=(0.0,) * 4, std=(1.0,) * 4)
    assert BandReader.of(spec) == BandReader("all", 4)
    assert torch.equal(BandReader.of(spec)(path), expected(values))


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        (BandReader((2, 5)), "it has 4 bands, and band 5 is asked for"),
        (BandReader("all", 3), "it has 4 bands, and 3 are expected of each image"),
    ],
)
def test_file_with_other_bands_is_refused(tmp_path, reader, reason):
    path = save_tiff(tmp_path / "a.tif", numbers())
    with pytest.raises(UserError, match=f"^{path}: cannot be read as an image .{reason}.; fix or remove it$"):
        reader(path)


class Runs:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def objects():
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([[Runs()]], object), allow_pickle=True)
    return file.getvalue()


def header(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\0" * 64


def archive():
    file = io.BytesIO()
    np.savez(file, a=np.ones((2, 2)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (objects(), "it holds objects of Python, which could run code, or is damaged"),
        (pickle.dumps(Runs()), "it holds objects of Python, which could run code, or is damaged"),
        (archive(), "it is an archive of arrays; write each to a .npy file of its own"),
        (header((90_000, 90_000, 4)), "it is damaged: 64 bytes of values where its header announces 64,800,000,000"),
        (header((-2, 4)), r"it is damaged: its header announces the shape \(-2, 4\)"),
        (
            header((2, 2, 2, 2)),
            r"its shape \(2, 2, 2, 2\) is none of .* and \(C, H, W\); in Python: lit_ft.load\(RUN\).pr",
        ),
        (header((0, 5)), r"its shape \(0, 5\) is none of"),
        (b"", "No data left in file"),
        (header((4, 4))[:30], "EOF: reading array header"),
    ],
)
def test_hostile_array_is_refused_and_nothing_in_it_runs(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=f"a.npy: cannot be read as an image .{reason}"):
        ALL(tmp_path / "a.npy")
    with pytest.raises(UserError, match=f"a.npy: cannot be read as an image .{reason}"):
        ALL(io.BytesIO(content), "a.npy")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[1, np.nan]]), "it has values that are not finite, as nan or inf"),
        (np.array([[1, -np.inf]]), "it has values that are not finite"),
        (np.array([[1e300]]), "it has values that are not finite"),  # in float32
        (np.ones((2, 2), complex), "its values are complex128, and no real numbers"),
        (np.array([["a"]]), "its values are <U1, and no real numbers"),
        (np.zeros((2, 2), "M8[s]"), r"its values are datetime64\[s\], and no real numbers"),
        (np.zeros((2, 2), [("a", "u1")]), "and no real numbers"),
    ],
)
def test_array_of_other_than_finite_numbers_is_refused(tmp_path, values, reason):
    with pytest.raises(UserError, match=reason):
        ALL(save(tmp_path / "a.npy", values))
    with pytest.raises(UserError, match=f"pictures: an image: cannot be read as an image .*{reason}"):
        ALL.of_picture(values)


def test_band_that_is_not_asked_for_may_have_any_values(tmp_path):
    path = save(tmp_path / "a.npy", np.stack([np.ones((3, 3)), np.full((3, 3), np.nan)]))
    assert torch.equal(BandReader((1,))(path), torch.ones(1, 3, 3))


def test_more_values_than_pillow_deems_safe_are_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.npy", numbers())
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 60)  # of which twice as many are allowed: 6 x 5 x 4
    assert ALL(path).shape == (4, 6, 5)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 59)
    with pytest.raises(UserError, match=r"its 4 x 6 x 5 values are more than 118, which PIL.Image.MAX_IMAGE_PIXELS"):
        ALL(path)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    assert ALL(path).shape == (4, 6, 5)


@pytest.mark.parametrize(
    ("mode", "bands"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("LA", 2), ("1", 1), ("P", 3), ("I;16", 1)]
)
def test_photo_has_the_bands_of_its_mode(tmp_path, mode, bands):
    values = numbers((6, 5), np.uint16) if mode == "I;16" else numbers((6, 5, bands), np.uint8)
    photo = Image.fromarray(values.squeeze() if bands == 1 else values)
    photo = photo.convert(mode) if mode in ("1", "P") else photo
    photo.save(tmp_path / "a.png")
    found = ALL(tmp_path / "a.png")
    assert found.shape == (bands, 6, 5)
    if mode not in ("1", "P"):
        assert torch.equal(found, expected(values.reshape(6, 5, bands)))


@pytest.mark.parametrize("bands", [3, 4])
def test_16_bits_of_colours_are_not_cut_to_8(tmp_path, bands):
    values = numbers((6, 5, bands))
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    assert torch.equal(ALL(tmp_path / "a.png"), expected(values))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photo_and_tiff_are_turned_as_pillow_turns_them(tmp_path, orientation):
    photo = Image.fromarray(numbers((6, 5, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    save_tiff(tmp_path / "a.tif", np.asarray(photo), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    with Image.open(tmp_path / "a.tif") as opened:
        opened.load()
        upright = expected(np.asarray(opened))
    assert torch.equal(ALL(tmp_path / "a.tif"), upright)
    assert torch.equal(ALL(tmp_path / "a.png"), upright)


def test_pictures_from_python_are_read_as_files_are(tmp_path):
    values, reader = numbers(), BandReader((4, 2))
    wanted = expected(values)[[3, 1]]
    for picture in (values, values.transpose(2, 0, 1), torch.from_numpy(values).movedim(2, 0)):
        assert torch.equal(reader.of_picture(picture), wanted)
    photo = Image.fromarray(numbers((6, 5, 4), np.uint8))
    assert torch.equal(reader.of_picture(photo), expected(np.asarray(photo))[[3, 1]])
    with pytest.raises(
        UserError, match=r"it has 3 bands, its shape \(6, 5, 3\) read as \(H, W, C\), and band 4 is asked"
    ):
        reader.of_picture(values[..., :3])


def test_bands_are_counted_in_the_first_file_that_can_be_read(tmp_path):
    damaged = tmp_path / "a.npy"
    damaged.write_bytes(b"x")
    assert count_bands([damaged, save_tiff(tmp_path / "b.tif", numbers())]) == 4
    with pytest.raises(UserError, match=re.escape(str(damaged))):
        count_bands([damaged])
    with pytest.raises(UserError, match="there are no images"):
        count_bands([])


def test_format_is_told_by_content_before_suffix(tmp_path):
    (tmp_path / "a").write_bytes(b"II*\0" + b"\0" * 124 + b"DICM")  # both, as some scanners write
    assert name_format(tmp_path / "a", "") == "DICOM"
    assert name_format(save_tiff(tmp_path / "b.dat", numbers()), ".dat") == "TIFF"
    assert name_format(io.BytesIO(b"\xff\xd8"), ".jpg") == ""
    assert name_format(io.BytesIO(b"junk"), ".npy") == "NumPy"


def test_missing_library_says_which_extra_to_install(tmp_path, monkeypatch):
    path = save_tiff(tmp_path / "a.tif", numbers())
    (tmp_path / "a.dcm").write_bytes(b"")
    for name in ("tifffile", "imagecodecs", "pydicom"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(UserError, match=r"a.tif: .*TIFF needs \w+: pip install 'lit_ft\[science\]'"):
        ALL(path)
    with pytest.raises(UserError, match=r"a.dcm: .*DICOM needs pydicom: pip install 'lit_ft\[science\]'"):
        ALL(tmp_path / "a.dcm")


def test_band_that_all_images_lack_is_refused_and_one_that_some_have_is_not(tmp_path):
    paths = [save_tiff(tmp_path / f"{i:02d}.tif", numbers((6, 5, 4 if i == 3 else 3))) for i in range(30)]
    damaged = tmp_path / "a.npy"
    damaged.write_bytes(b"x")
    line = f"data.bands: [2, 9], but the images have 4 bands, such as {paths[3]}; give numbers from 1 to 4, or all"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        refuse_missing_bands(paths, BandReader((2, 9)))
    refuse_missing_bands(paths, BandReader((4,)))
    refuse_missing_bands([damaged], BandReader((9,)))
    refuse_missing_bands(paths, BandReader("all"))
    grey = [save_tiff(tmp_path / "grey.tif", numbers((6, 5, 1)))]
    with pytest.raises(UserError, match=r"have 1 band, such as .*; give 1, or all"):
        refuse_missing_bands(grey, BandReader((2,)))
