import io
import struct
import subprocess
import sys

import pytest
from image_files import save_photo
from PIL import Image

from lit_ft.data.images import formats as module
from lit_ft.data.images.decode import decode
from lit_ft.data.images.formats import formats, image_suffixes, is_image
from lit_ft.data.images.verification import problem
from lit_ft.errors import UserError

# Of the formats that photos come in, one that each plugin of Pillow writes.
WRITTEN = {
    "jpe": "JPEG", "jpg": "JPEG", "jfif": "JPEG", "mpo": "MPO", "jp2": "JPEG2000", "j2k": "JPEG2000", "tga": "TGA",
    "png": "PNG", "apng": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP", "dib": "DIB", "tif": "TIFF", "ppm": "PPM",
    "pgm": "PPM", "pnm": "PPM", "avif": "AVIF", "pcx": "PCX", "sgi": "SGI", "rgb": "SGI", "ico": "ICO", "dds": "DDS",
    "qoi": "QOI", "icns": "ICNS",
}  # fmt: skip
BY_CONTENT = {"JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "QOI"}
HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0heicmif1"


@pytest.fixture
def no_heif(monkeypatch):
    """Pillow as it is without the extra."""
    formats()
    monkeypatch.setattr(module, "formats", lambda: tuple(name for name in formats() if name != "HEIF"))
    image_suffixes.cache_clear()
    yield
    image_suffixes.cache_clear()


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_pillow_opens_is_an_image(tmp_path, suffix):
    if WRITTEN[suffix] not in (*formats(), "MPO") or WRITTEN[suffix] not in Image.SAVE:
        pytest.skip("this Pillow does not read or write it")
    path = tmp_path / f"x.{suffix}"
    save_photo(path, (250, 0, 0), (64, 64), format=WRITTEN[suffix])
    assert is_image(str(path))
    assert is_image(str(path.with_suffix(f".{suffix.upper()}")))
    assert decode(path)[0, 32, 32] >= 240
    path.rename(tmp_path / "x")
    assert is_image(str(tmp_path / "x")) == (WRITTEN[suffix] in BY_CONTENT)
    assert decode(tmp_path / "x").shape[0] == 3  # as one file that is named is read by its content


@pytest.mark.parametrize("format", ["EPS", "PDF"])
@pytest.mark.parametrize("name", ["x", "x.jpg", "x.eps"])
def test_documents_are_not_opened(tmp_path, monkeypatch, format, name):
    """Pillow would let Ghostscript run the program that an EPS file is."""
    Image.new("RGB", (8, 8)).save(tmp_path / name, format)
    monkeypatch.setattr(subprocess, "check_call", None)
    with pytest.raises(UserError, match=rf"/{name}: cannot be read as an image \(its format is not known\); fix or"):
        decode(tmp_path / name)
    assert is_image(str(tmp_path / name)) == (name == "x.jpg")


def test_only_formats_that_run_nothing_and_need_no_handler():
    assert {"JPEG", "PNG", "WEBP", "TIFF", "TGA", "JPEG2000"} <= set(formats())
    assert not {"EPS", "PSD", "WMF", "GRIB", "BUFR", "HDF5", "MPEG", "FITS"} & set(formats())
    assert not {".eps", ".ps", ".pdf", ".psd", ".h5", ".mpg", ".wmf"} & image_suffixes()


@pytest.mark.parametrize("name", ["x.heic", "x.HIF", "x.jpg", "x"])
def test_heic_says_which_extra_reads_it(tmp_path, no_heif, name):
    (tmp_path / name).write_bytes(HEIC)
    told = r"cannot be read as an image \(HEIC: pip install 'lit_ft\[heic\]' reads it\)"
    with pytest.raises(UserError, match=told):
        decode(tmp_path / name)
    assert problem(tmp_path / name) == "HEIC: pip install 'lit_ft[heic]' reads it"
    assert is_image(str(tmp_path / name)) == (name == "x.jpg")
    with pytest.raises(UserError, match=told):
        decode(io.BytesIO(HEIC), "chunk 3")


def test_heic_is_counted_with_the_extra_that_reads_it(photo_root, no_heif):
    for name in ("1.heic", "2.HEIC", "3.heif"):
        (photo_root / "ant" / name).write_bytes(HEIC)
    from lit_ft.data import ImageFolderDataModule

    told = r"3 file\(s\) .* not used: 2 .heic, 1 .heif; HEIC: pip install 'lit_ft\[heic\]' reads it$"
    with pytest.warns(UserWarning, match=told):
        ImageFolderDataModule(str(photo_root)).read_given()


def test_heic_is_read_with_the_extra(tmp_path):
    pytest.importorskip("pillow_heif")
    formats()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.new("RGB", (64, 48), (250, 0, 0))
    image.paste((0, 0, 250), (0, 0, 32, 48))  # the left half, which comes to lie on top
    for name in ("x.heic", "x"):
        image.save(tmp_path / name, "HEIF", exif=exif.tobytes())
        assert is_image(str(tmp_path / name))
        decoded = decode(tmp_path / name).float()
        assert decoded.shape == (3, 64, 48)
        assert decoded[2, :28].mean() > 200 > 50 > decoded[2, 36:].mean()


def test_formats_are_loaded_when_they_are_first_needed():
    code = (
        "import sys, lit_ft.data.files.image_index; "
        "print('PIL.TgaImagePlugin' in sys.modules, 'pillow_heif' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
