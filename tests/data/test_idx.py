import gzip

import numpy as np
import pytest
from image_files import idx_bytes, noise, write_idx

from lit_ft.data.idx import read_idx, read_labelled
from lit_ft.errors import UserError


@pytest.mark.parametrize("gz", [True, False])
def test_images_come_back_as_written(tmp_path, gz):
    images = noise(3)[:, :5, :7]
    write_idx(tmp_path / "x", images, gz=gz)
    assert np.array_equal(read_idx(tmp_path / "x", 3).numpy(), images)


def test_missing_file_names_the_path_and_the_option(tmp_path):
    with pytest.raises(UserError, match=rf"missing file {tmp_path}/raw/x \(or x.gz\); .*--data.download true"):
        read_idx(tmp_path / "raw" / "x", 1)


def test_wrong_magic(tmp_path):
    write_idx(tmp_path / "x", np.arange(4))
    with pytest.raises(UserError, match=r"x: not an IDX file of 3-dim.* begins with 00000801 where 00000803"):
        read_idx(tmp_path / "x", 3)


def test_other_kind_of_file(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(UserError, match="x: not an IDX file"):
        read_idx(tmp_path / "x", 1)


@pytest.mark.parametrize("change", [-1, 1])
def test_one_byte_short_or_over(tmp_path, change):
    data = idx_bytes(noise(2))
    (tmp_path / "x").write_bytes(data[:-1] if change < 0 else data + b"0")
    with pytest.raises(
        UserError, match=rf"x: damaged: {len(data) + change} bytes where its header announces {len(data)}"
    ):
        read_idx(tmp_path / "x", 3)


def test_cut_gzip(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx_bytes(noise(2)))[:-9])
    with pytest.raises(UserError, match=r"x.gz: cannot be read"):
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


@pytest.mark.parametrize("labels", [[0, 1], [1, 27]])
def test_labels_out_of_range(tmp_path, labels):
    write_idx(tmp_path / "x", noise(2))
    write_idx(tmp_path / "y", labels)
    with pytest.raises(UserError, match=rf"y: labels from {labels[0]} to {labels[1]}, expected 1 to 26"):
        read_labelled(tmp_path / "x", tmp_path / "y", 26, first_label=1)
