import io
import logging
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from band_files import lie, numbers, save_tiff
from image_files import save_photo, scene
from PIL import Image, ImageFile
from torchvision.transforms import v2

from lit_ft.data.images import decode as module
from lit_ft.data.images.crops import make_crops
from lit_ft.data.images.decode import (
    decode,
    formats,
    image_suffixes,
    is_image,
    to_pixels,
    upright_size,
    why_unread,
)
from lit_ft.data.images.verification import problem
from lit_ft.errors import UserError

ORIENTATION = 0x0112


def crop_alone(file, crop):
    return next(make_crops(file, crop, [0]))


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "tiff", "PNG"])
def test_formats_give_the_same_pixels(tmp_path, suffix):
    save_photo(tmp_path / f"x.{suffix}", (250, 0, 0), (7, 5), **({"lossless": True} if suffix == "webp" else {}))
    image = decode(tmp_path / f"x.{suffix}")
    assert image.shape == (3, 5, 7)
    assert image.dtype == torch.uint8
    assert image[:, 2, 3].tolist() == [250, 0, 0]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_colour_modes_become_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / f"x.{suffix}")
    image = decode(tmp_path / f"x.{suffix}")
    assert image.shape == (3, 8, 8)
    assert image.min() >= 250


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png").unique().tolist() == [255]


def test_16_bit_images_keep_their_scale(tmp_path):
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png").unique().tolist() == [128]


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter: left goes up
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=exif)
    image = decode(tmp_path / "x.jpg").float()
    assert image.shape == (3, 32, 16)
    assert image[:, :12].mean() > 240
    assert image[:, 20:].mean() < 15


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "x.gif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_upright_in_decoding_cropping_and_the_header(tmp_path, suffix, orientation):
    pixels = np.zeros((40, 24, 3), np.uint8)
    pixels[:20, :12], pixels[:20, 12:], pixels[20:, :12] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What a camera stores, so that turning it as the tag says gives the picture.
    turn = Image.Transpose
    stored = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE,
              6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}  # fmt: skip
    image = Image.fromarray(pixels)
    if orientation > 1:
        image = image.transpose(stored[orientation])
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"x.{suffix}"
    image.save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {"lossless": True}))
    assert upright_size(path) == (40, 24)
    decoded = decode(path)
    assert decoded.shape == (3, 40, 24)
    whole = v2.RandomResizedCrop((20, 12), scale=(1, 1), ratio=(0.6, 0.6))  # shrinks by 2
    for found, corners in ((decoded, (5, 30, 4, 18)), (crop_alone(path, whole), (3, 15, 2, 9))):
        top, bottom, left, right = corners
        assert (found[:, top, left] - torch.tensor([250.0, 0, 0])).abs().max() < 8
        assert (found[:, top, right] - torch.tensor([0, 250.0, 0])).abs().max() < 8
        assert (found[:, bottom, left] - torch.tensor([0, 0, 250.0])).abs().max() < 8


@pytest.mark.parametrize(
    ("least", "size"),
    [
        (0, (600, 800)),
        (301, (600, 800)),
        (300, (300, 400)),
        (151, (300, 400)),
        (150, (150, 200)),
        (75, (75, 100)),
        (1, (75, 100)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_whole_jpeg_is_decoded_smaller_where_so_few_pixels_are_needed(tmp_path, least, size, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(scene(600, 800)).save(tmp_path / "x.jpg", exif=exif, quality=95)
    Image.fromarray(scene(600, 800)).save(tmp_path / "x.png", exif=exif)
    found = decode(tmp_path / "x.jpg", least=least)
    assert found.shape[1:] == (size if orientation == 1 else size[::-1])
    assert decode(tmp_path / "x.png", least=least).shape[1:] == ((600, 800) if orientation == 1 else (800, 600))


def test_palette_with_transparency_becomes_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "x.png", transparency=1)
    assert decode(tmp_path / "x.png").permute(1, 2, 0).tolist() == [
        [[10, 20, 30], [255, 255, 255]],
        [[255, 255, 255], [70, 80, 90]],
    ]


def test_transparent_grey_of_16_bits_becomes_white(tmp_path):
    Image.fromarray(np.array([[0, 515, 512]], np.uint16)).save(tmp_path / "x.png", transparency=515)
    assert decode(tmp_path / "x.png")[:, 0].tolist() == [[0, 255, 2]] * 3


def test_16_bit_colours_keep_their_scale(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + struct.pack(">6H", 65535, 32768, 0, 256, 512, 1024)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(row))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))
    assert decode(tmp_path / "x.png")[:, 0].T.tolist() == [[255, 128, 0], [1, 2, 4]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 128 * 256, 65535]], np.uint16), [0, 128, 255]),
        (np.array([[0, 128 * 256, 65535]], np.int32), [0, 128, 255]),
    ],
)
def test_tiff_of_numbers_keeps_its_scale(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert decode(tmp_path / "x.tif")[:, 0].tolist() == [expected] * 3


@pytest.mark.parametrize("values", [[0.0, 80.0], [-0.1, 0.5], [float("nan"), 0.5], [0, 70000], [-5, 9]])
def test_tiff_of_numbers_without_a_scale_is_refused(tmp_path, values):
    kind = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values], kind)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x.tif: cannot be read as an image \(its values are from .*should be"):
        decode(tmp_path / "x.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff_in_which_white_is_zero_is_no_negative(tmp_path, compression):
    values = np.array([[0, 128 * 256, 65535]], np.uint16)
    save_tiff(tmp_path / "x.tif", values, photometric="miniswhite", compression=compression)
    assert decode(tmp_path / "x.tif")[:, 0].tolist() == [[255, 127, 0]] * 3
    with Image.open(tmp_path / "x.tif") as image:
        assert to_pixels(image)[:, 0].tolist() == [[255, 127, 0]] * 3


@pytest.mark.parametrize(
    ("dtype", "samples", "compression"),
    [(np.uint16, 3, None), (np.uint16, 4, None), (np.uint16, 3, "zlib"), (np.uint8, 3, None), (np.uint8, 2, "zlib")],
)
def test_tiff_of_planes_has_its_own_pixels_or_is_refused(tmp_path, dtype, samples, compression):
    values = numbers((6, 5, samples), dtype)
    photometric = "rgb" if samples > 2 else "minisblack"
    extra = {3: {}, 2: {"extrasamples": ["unassalpha"]}, 4: {"extrasamples": ["unassalpha"]}}[samples]
    planes = {"photometric": photometric, "planarconfig": "separate", "compression": compression, **extra}
    save_tiff(tmp_path / "x.tif", np.moveaxis(values, 2, 0), **planes)
    if samples == 3 and (dtype == np.uint8 or compression):
        assert decode(tmp_path / "x.tif").permute(1, 2, 0).tolist() == (values >> (8 * (dtype().itemsize - 1))).tolist()
        return
    for read in (decode, lambda file: crop_alone(file, v2.RandomResizedCrop(4))):
        with pytest.raises(UserError, match=r"x.tif: .*planes.*Pillow mistakes.*planarconfig='contig'.*data.bands"):
            read(tmp_path / "x.tif")


def test_first_page_of_a_tiff(tmp_path):
    pages = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert decode(tmp_path / "x.tif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_printing_colours_become_screen_colours(tmp_path, name):
    Image.new("RGB", (16, 16), (200, 100, 50)).convert("CMYK").save(tmp_path / name)
    expected = torch.tensor([200.0, 100, 50])
    assert (decode(tmp_path / name)[:, 8, 8] - expected).abs().max() < 6
    if name == "x.jpg":
        assert b"Adobe" in (tmp_path / name).read_bytes()  # which says that the file has its colours inverted


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_file_is_an_error_whatever_the_program_allows(tmp_path, monkeypatch, suffix, share, lenient):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(scene(60, 80)).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for read in (decode, lambda file: crop_alone(file, v2.RandomResizedCrop(16))):
        with pytest.raises(UserError, match=rf"^{path}: cannot be read as an image \(.*\); fix or remove it$") as told:
            read(path)
        assert "\n" not in str(told.value)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_bomb_is_refused_and_a_large_photo_is_not(tmp_path, monkeypatch):
    save_photo(tmp_path / "x.png", size=(50, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1001)  # Pillow warns of more than this, and refuses twice as much
    assert decode(tmp_path / "x.png").shape == (3, 40, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 999)
    for read in (decode, upright_size, lambda file: crop_alone(file, v2.RandomResizedCrop(16))):
        with pytest.raises(UserError, match=r"x.png: cannot be read as an image \(.*2000 pixels.*limit of 1998 pixels"):
            read(tmp_path / "x.png")


def test_content_without_a_file_is_told_by_its_name(tmp_path):
    save_photo(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    assert decode(io.BytesIO(content)).equal(decode(tmp_path / "x.png"))
    with pytest.raises(UserError, match=r"^chunk 3: cannot be read"):
        decode(io.BytesIO(content[:80]), "chunk 3")


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


@pytest.mark.long
def test_formats_are_loaded_when_they_are_first_needed():
    code = (
        "import sys, lit_ft.data.files.image_index; "
        "print('PIL.TgaImagePlugin' in sys.modules, 'pillow_heif' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_what_pillow_logs_of_a_damaged_file_is_not_printed(tmp_path, monkeypatch, capsys):
    path = lie(save_tiff(tmp_path / "a.tif", numbers()), SamplesPerPixel=60_000)
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    with pytest.raises(UserError, match="a TIFF of bits, bands or a compression that Pillow does not know"):
        decode(path)
    assert capsys.readouterr().err == ""


def test_reason_of_pages_is_cut_to_a_line(tmp_path):
    found = why_unread(tmp_path / "a.dcm", RuntimeError("no plugin:\n" + "\tgdcm is not installed\n" * 50))
    assert found.startswith("no plugin: gdcm is not installed gdcm")
    assert found.endswith(" …")
    assert len(found) <= 200


@pytest.mark.parametrize(("name", "part"), [("set.npz", r"\[NAME\]"), ("set.npy", "")])
def test_arrays_in_place_of_a_photo_are_answered_with_the_call(tmp_path, name, part):
    (np.savez if name == "set.npz" else np.save)(tmp_path / name, np.zeros((3, 9, 9), np.uint8))
    call = rf"in Python: lit_ft.load\(RUN\).predict\(numpy.load\(FILE\){part}\)"
    with pytest.raises(
        UserError, match=rf"/{name}: cannot be read as an image \(it holds arrays, and no photo; {call}\)"
    ):
        decode(tmp_path / name)
