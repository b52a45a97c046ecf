import gzip
import math
import struct
import tracemalloc

import numpy as np
import pytest
from image_files import idx_bytes, noise, write_idx

from lit_ft.data.files.idx import read_idx, read_labelled
from lit_ft.errors import UserError


@pytest.mark.parametrize("gz", [True, False])
def test_images_come_back_as_written(tmp_path, gz):
    images = noise(3)[:, :5, :7]
    write_idx(tmp_path / "x", images, gz=gz)
    assert np.array_equal(read_idx(tmp_path / "x", 3).numpy(), images)


def test_missing_file_names_the_path_and_the_option(tmp_path):
    with pytest.raises(UserError, match=rf"missing file {tmp_path}/raw/x \(or x.gz\); .*data.download true"):
        read_idx(tmp_path / "raw" / "x", 1)


def test_wrong_magic(tmp_path):
    write_idx(tmp_path / "x", np.arange(4))
    with pytest.raises(UserError, match=r"x: not an IDX file of 3-dim.* begins with 00000801 where 00000803"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"<html><body>not found",
        bytes([0, 0, 8, 1, 0, 0, 0]),  # cut within its header
        bytes([8, 0, 0, 1]) + idx_bytes([1])[4:],
        bytes([0, 0, 9, 1]) + idx_bytes([1])[4:],  # signed bytes
        bytes([0, 0, 13, 1]) + idx_bytes([1])[4:],  # floats
    ],
)
def test_other_kind_of_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"x: not an IDX file of 1-dimensional bytes: .*00000801 is expected$"):
        read_idx(tmp_path / "x", 1)


@pytest.mark.parametrize("shape", [(4, 28, 28), (1, 28, 28), (2**31, 2**31, 4), (2**32 - 1,) * 3])
def test_header_announces_another_size(tmp_path, shape):
    data = idx_bytes(noise(2))
    (tmp_path / "x").write_bytes(data[:4] + struct.pack(">3I", *shape) + data[16:])
    with pytest.raises(UserError, match=f"x: damaged: {len(data)} bytes .* announces {16 + math.prod(shape)};"):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("shape", [(0, 28, 28), (2, 0, 28)])
def test_no_pixels(tmp_path, shape):
    write_idx(tmp_path / "x", np.zeros(shape))
    write_idx(tmp_path / "y", [1] * shape[0])
    with pytest.raises(UserError, match=f"x: no pixels, its images are {' x '.join(map(str, shape))}$"):
        read_labelled(tmp_path / "x", tmp_path / "y", 10)


@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_short_or_over(tmp_path, change):
    data = idx_bytes(noise(2))
    (tmp_path / "x").write_bytes(data[:-1] if change < 0 else data + b"0")
    with pytest.raises(
        UserError, match=rf"x: damaged: {len(data) + change} bytes where its header announces {len(data)}"
    ):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize("damage", ["cut", "cut header", "not gzip", "checksum", "stream"])
def test_damaged_gzip(tmp_path, damage):
    data = bytearray(gzip.compress(idx_bytes(noise(2))))
    if damage == "checksum":
        data[-5] ^= 1
    if damage == "stream":
        data[10:20] = b"\xff" * 10
    cuts = {"cut": data[:-9], "cut header": data[:5], "not gzip": idx_bytes(noise(2))}
    (tmp_path / "x.gz").write_bytes(cuts.get(damage, data))
    with pytest.raises(UserError, match=r"x.gz: cannot be read \(.*\); fetch it anew$"):
        read_idx(tmp_path / "x", 3)


def test_labels_start_at_the_first_label(tmp_path):
    write_idx(tmp_path / "x", noise(3))
    write_idx(tmp_path / "y", [1, 26, 2])
    images, targets = read_labelled(tmp_path / "x", tmp_path / "y", 26, first_label=1)
    assert images.shape == (3, 1, 28, 28)
    assert targets.tolist() == [0, 25, 1]


def test_counts_differ(tmp_path):
    write_idx(tmp_path / "x", noise(3))
    write_idx(tmp_path / "y", [1, 2])
    with pytest.raises(UserError, match="y: 2 labels for the 3 images of x"):
        read_labelled(tmp_path / "x", tmp_path / "y", 10)


@pytest.mark.parametrize("labels", [[0, 1], [1, 27], [26, 255]])
def test_labels_out_of_range(tmp_path, labels):
    write_idx(tmp_path / "x", noise(2))
    write_idx(tmp_path / "y", labels)
    with pytest.raises(UserError, match=rf"y: labels from {labels[0]} to {labels[1]}, expected 1 to 26"):
        read_labelled(tmp_path / "x", tmp_path / "y", 26, first_label=1)


def bomb(path, shape, size):
    """A gzipped file of zeros: its header announces a shape, and it unpacks to ``size`` bytes."""
    with gzip.open(path, "wb") as file:
        file.write(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape))
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))


def test_no_more_is_unpacked_than_the_header_announces(tmp_path):
    bomb(tmp_path / "x.gz", (2, 28, 28), 64 << 20)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"x.gz: damaged: more than 1584 bytes where its header announces 1584; fetch"):
        read_idx(tmp_path / "x", 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_header_that_no_compression_reaches_allocates_nothing(tmp_path):
    bomb(tmp_path / "x.gz", (2**32 - 1,) * 3, 1 << 20)
    size = (tmp_path / "x.gz").stat().st_size
    with pytest.raises(UserError, match=f"its {size} bytes cannot hold the {16 + (2**32 - 1) ** 3} that its header"):
        read_idx(tmp_path / "x", 3)


def test_header_announces_more_than_fits_into_memory(tmp_path, monkeypatch):
    def full(size):
        raise MemoryError

    bomb(tmp_path / "x.gz", (1 << 20,), 1 << 20)
    monkeypatch.setattr("lit_ft.data.files.idx.bytearray", full, raising=False)
    with pytest.raises(UserError, match=r"x.gz: its header announces 1048584 bytes, more than fit into memory$"):
        read_idx(tmp_path / "x", 1)


def test_gzipped_file_that_is_shorter_than_announced(tmp_path):
    data = idx_bytes(noise(2))
    (tmp_path / "x.gz").write_bytes(gzip.compress(data[:-1]))
    with pytest.raises(UserError, match=f"x.gz: damaged: {len(data) - 1} bytes where its header announces {len(data)}"):
        read_idx(tmp_path / "x", 3)
