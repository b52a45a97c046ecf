import numpy as np
import pytest
import torch
from band_files import numbers, save_tiff

from lit_ft.data.bands import statistics
from lit_ft.data.bands.reader import BandReader
from lit_ft.data.bands.statistics import measure_bands
from lit_ft.data.files.file_split import PackedPaths
from lit_ft.errors import UserError


def save_all(root, images):
    return PackedPaths.pack("", [save_tiff(root / f"{i}.tif", values) for i, values in enumerate(images)])


def check(found, pixels):
    """Compares with NumPy's over pixels ``(n, C)``."""
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0, dtype=np.float64), rtol=1e-9)


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path):
    sizes = [(6, 5), (40, 30), (1, 1), (7, 9)]
    images = [numbers((*size, 4), seed=i) >> i for i, size in enumerate(sizes)]
    paths = save_all(tmp_path, images)
    pixels = np.concatenate([values.reshape(-1, 4) for values in images])
    check(measure_bands(paths, BandReader("all", 4)), pixels)
    check(measure_bands(paths, BandReader((4, 2))), pixels[:, [3, 1]])


def test_small_deviation_beside_a_large_mean_is_kept(tmp_path):
    images = [(2.0**23 + np.random.default_rng(i).integers(0, 2, (50, 50, 1))).astype(np.float32) for i in range(3)]
    found = measure_bands(save_all(tmp_path, images), BandReader("all", 1))
    check(found, np.concatenate([values.reshape(-1, 1) for values in images]))
    assert 0.49 < found.std[0] < 0.51


def test_band_that_never_changes_has_a_deviation_of_1(tmp_path):
    values = numbers((6, 5, 3), np.float32)
    values[..., 1] = 0.1
    found = measure_bands(save_all(tmp_path, [values, values]), BandReader("all", 3))
    assert (found.mean[1], found.std[1]) == (pytest.approx(0.1, rel=1e-6), 1.0)
    assert found.std[0] != 1.0


def test_they_are_kept_until_a_file_or_the_bands_change(tmp_path, monkeypatch):
    looked = []
    moments = statistics._moments

    def counted(reader, path):
        looked.append(path.name)
        return moments(reader, path)

    monkeypatch.setattr(statistics, "_moments", counted)
    paths = save_all(tmp_path, [numbers(seed=i) for i in range(3)])
    first = measure_bands(paths, BandReader("all", 4))
    assert measure_bands(paths, BandReader("all", 4)) == first
    assert looked == ["0.tif", "1.tif", "2.tif"]
    assert measure_bands(paths, BandReader((2,))).mean == first.mean[1:2]
    assert measure_bands(paths.part(torch.tensor([0, 1])), BandReader("all", 4)) != first
    looked.clear()
    save_tiff(paths[1], numbers(seed=9))
    assert measure_bands(paths, BandReader("all", 4)) != first
    assert looked == ["0.tif", "1.tif", "2.tif"]


def test_image_that_cannot_be_read_is_named(tmp_path):
    paths = save_all(tmp_path, [numbers(), numbers((6, 5, 3))])
    with pytest.raises(UserError, match=r"1\.tif: .*it has 3 bands, and 4 are expected"):
        measure_bands(paths, BandReader("all", 4))
