import logging
import struct
import tracemalloc
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from band_files import CHUNKY, lie, numbers, save_tiff

from lit_ft.data.bands.reader import BandReader
from lit_ft.data.images.verification import problem
from lit_ft.errors import UserError

ALL = BandReader("all")


def expected(values):
    return torch.from_numpy(values.astype(np.float32)).movedim(-1, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_values_of_any_type_and_order_are_kept(tmp_path, dtype, planar):
    values = numbers((8, 7, 16), dtype)
    written = values if planar == "contig" else values.transpose(2, 0, 1)
    path = save_tiff(tmp_path / "a.tif", written, planarconfig=planar)
    assert torch.equal(ALL(path), expected(values))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zlib", "predictor": True},
        {"compression": "lzw"},
        {"compression": "zstd"},
        {"compression": "lzma"},
        {"compression": "packbits"},
        {"tile": (16, 16), "compression": "zlib"},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"rowsperstrip": 3},
    ],
    ids=str,
)
def test_ways_of_writing_give_the_same(tmp_path, options):
    values = numbers((20, 24, 5))
    assert torch.equal(ALL(save_tiff(tmp_path / "a.tif", values, **options)), expected(values))


def test_pages_of_one_size_are_bands(tmp_path):
    values = numbers((6, 8, 7))  # of seven bands
    stacked = values.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "pages.tif", stacked, photometric="minisblack")
    tifffile.imwrite(tmp_path / "imagej.tif", stacked, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "ome.tif", stacked, ome=True, metadata={"axes": "CYX"})
    for name in ("pages.tif", "imagej.tif", "ome.tif"):
        assert torch.equal(ALL(tmp_path / name), expected(values))


def test_smaller_copies_are_passed_over(tmp_path):
    values = numbers((16, 16, 4))
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        file.write(values, metadata=None, **CHUNKY)
        file.write(values[::2, ::2], metadata=None, subfiletype=1, **CHUNKY)
    with tifffile.TiffWriter(tmp_path / "within.tif") as file:
        file.write(values, subifds=1, **CHUNKY)
        file.write(values[::2, ::2], subfiletype=1, **CHUNKY)
    for name in ("pages.tif", "within.tif"):
        assert torch.equal(ALL(tmp_path / name), expected(values))


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_white_that_is_0_is_made_the_largest(tmp_path, dtype, most):
    values = numbers((6, 5), dtype)
    path = save_tiff(tmp_path / "a.tif", values, photometric="miniswhite")
    assert torch.equal(ALL(path)[0], torch.from_numpy(most - values.astype(np.float32)))


def test_numbers_of_colours_become_the_colours(tmp_path):
    colours = numbers((3, 256))
    values = numbers((6, 5), np.uint8)
    path = save_tiff(tmp_path / "a.tif", values, photometric="palette", colormap=colours)
    assert torch.equal(ALL(path), torch.from_numpy(colours[:, values].astype(np.float32)))


def test_photo_in_a_tiff_is_read_by_pillow(tmp_path):
    even = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    path = save_tiff(tmp_path / "a.tif", even, photometric="rgb", compression="jpeg")
    torch.testing.assert_close(ALL(path).mean((1, 2)), torch.tensor([200.0, 100, 50]), atol=3, rtol=0)


@pytest.mark.parametrize(("compression", "name"), [(34712, "JPEG2000"), (9999, "9999")])
def test_compression_that_nobody_reads_is_named_and_the_option_not_advised_again(tmp_path, compression, name):
    path = lie(save_tiff(tmp_path / "a.tif", numbers()), Compression=compression)
    reason = "its bits, bands or compression are unknown to Pillow; TIFF with compression"
    with pytest.raises(UserError, match=f"{reason} {name} is left to Pillow; save it with LZW, Deflate or none.; fix"):
        ALL(path)
    assert problem(path, ALL).startswith(f"{reason} {name}")


def test_damage_of_a_photo_in_a_tiff_stays_the_reason(tmp_path):
    even = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    path = save_tiff(tmp_path / "a.tif", even, photometric="rgb", compression="jpeg", software="x" * 2000)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(
        UserError, match=r"cannot be read as an image .(?!its bits).*compression JPEG is left to Pillow"
    ):
        ALL(path)


@pytest.mark.parametrize(
    ("options", "tags", "reason"),
    [
        (
            {},
            {"ImageWidth": 200_000, "ImageLength": 200_000},
            "its 4 x 200000 x 200000 values are more than 178,956,970",
        ),
        ({}, {"ImageWidth": 20_000, "ImageLength": 2_000}, "failed to read 320000000 bytes, got 240"),
        ({}, {"StripOffsets": 10**9}, "its values would lie beyond its end"),
        ({}, {"StripByteCounts": 10**6}, "its values would lie beyond its end"),
        (
            {"tile": (16, 16), "compression": "zlib"},
            {"TileWidth": 60_000, "TileLength": 60_000},
            "its 60000 x 60000 x 4",
        ),
        ({"compression": "zlib"}, {"StripOffsets": 8}, "libdeflate|zlib|[Dd]eflate"),
        ({}, {"SamplesPerPixel": 60_000}, "."),
        ({}, {"ImageWidth": 0}, "a width, height or number of rows in its tags is 0"),
        ({}, {"ImageLength": 0}, "a width, height or number of rows in its tags is 0"),
    ],
)
def test_tags_that_lie_are_refused(tmp_path, options, tags, reason):
    path = lie(save_tiff(tmp_path / "a.tif", numbers(), **options), **tags)
    with pytest.raises(UserError, match=f"a.tif: cannot be read as an image .{reason}"):
        ALL(path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncated_file_is_refused(tmp_path, share, compression):
    path = save_tiff(tmp_path / "a.tif", numbers((40, 40, 4)), compression=compression)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"a.tif: cannot be read as an image"):
        ALL(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits", "lzma"])
def test_more_than_a_strip_should_hold_is_not_unpacked(tmp_path, compression):
    path = save_tiff(tmp_path / "a.tif", numbers(), compression=compression)
    ALL(path)  # which loads what it needs
    packed = b"\x81\0" * (1 << 15) if compression == "packbits" else pack(compression, bytes(1 << 22))
    start = path.stat().st_size
    with path.open("ab") as file:
        file.write(packed)
    lie(path, StripOffsets=start, StripByteCounts=len(packed))
    tracemalloc.start()
    try:
        with suppress(UserError):  # some decoders give what there is room for
            assert ALL(path).shape == (4, 6, 5)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def pack(compression, content):
    return getattr(imagecodecs, f"{compression}_encode")(content)


def test_pages_without_end_are_not_read(tmp_path):
    content = bytearray(b"II*\0" + struct.pack("<I", 8))
    for _ in range(5000):
        content += struct.pack("<HHHII", 1, 256, 3, 1, 1) + struct.pack("<I", len(content) + 18)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match="it has more than 4,096 pages"):
        ALL(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("axes", "shape", "reason"),
    [("ZYX", (3, 6, 8), "it has 3 depths"), ("TCYX", (2, 3, 6, 8), "it has 2 times of 3 pages")],
)
def test_stack_of_images_is_refused(tmp_path, axes, shape, reason):
    tifffile.imwrite(tmp_path / "a.tif", numbers(shape), imagej=True, metadata={"axes": axes})
    with pytest.raises(UserError, match=f"{reason}; write each image to a file of its own"):
        ALL(tmp_path / "a.tif")


def test_file_that_names_another_one_does_not_open_it(tmp_path):
    save_tiff(tmp_path / "other.tif", numbers((6, 8)))
    described = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="8" SizeY="6" SizeC="2" SizeZ="1" SizeT="1">'
        '<TiffData FirstC="0" IFD="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstC="1" IFD="0"><UUID FileName="other.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", numbers((6, 8)), description=described, metadata=None)
    assert ALL(tmp_path / "a.ome.tif").shape == (1, 6, 8)


def test_nothing_is_printed_of_odd_tags(tmp_path, capfd):
    path = lie(save_tiff(tmp_path / "a.tif", numbers()), ImageWidth=10**9)
    with pytest.raises(UserError):
        ALL(path)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("tifffile").level != logging.CRITICAL


def test_no_bits_are_no_bands(tmp_path):
    path = lie(save_tiff(tmp_path / "a.tif", numbers((6, 5, 1))), BitsPerSample=0)
    with pytest.raises(UserError, match="its tags announce no values"):
        ALL(path)
