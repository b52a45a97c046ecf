import numpy as np
import pytest
import torch
from image_files import save_photo
from PIL import Image

from lit_ft.data.decode import decode


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
