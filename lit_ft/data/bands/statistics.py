"""Mean and standard deviation of each band over the pixels of many images, from one pass, kept between runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lit_ft.data.bands.reader import BandReader
from lit_ft.data.files.derived_cache import Derived, hash_tensors, load_or_derive, match_layout
from lit_ft.data.files.file_split import PackedPaths, PhotoFiles
from lit_ft.data.loading.workers import sweep

_LAYOUT = {"mean": (torch.float64, 1), "std": (torch.float64, 1)}


@dataclass(frozen=True)
class BandStatistics:
    """Mean and standard deviation of each of C bands.

    Args:
        mean: In the units of the files.
        std: Likewise; 1 for a band that is the same everywhere.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure_bands(paths: PackedPaths, reader: BandReader) -> BandStatistics:
    """The statistics of the bands of images, over all pixels of all of them; those of the same files are kept.

    Raises:
        UserError: An image cannot be read.
    """
    files = PhotoFiles.of(paths)
    key = json.dumps([repr(reader), hash_tensors([torch.from_numpy(files.keys)])])
    arrays, _ = load_or_derive("bands", key, _is_valid, partial(_measure, paths, reader))
    return BandStatistics(tuple(arrays["mean"].tolist()), tuple(arrays["std"].tolist()))


def _is_valid(found: Derived) -> bool:
    arrays = found[0]
    return match_layout(arrays, _LAYOUT) and len(arrays["mean"]) == len(arrays["std"]) > 0


def _measure(paths: PackedPaths, reader: BandReader) -> Derived:
    """Joins the moments of the images, in their order.

    As Chan, Golub and LeVeque (1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, eq.
    2.1): sums of squares would lose the digits of bands that vary little.
    """
    count, total = 0, torch.zeros(0)
    for number, moments in sweep(paths, partial(_moments, reader), "measuring the bands of each training image"):
        if not count:
            count, total = number, moments
            continue
        joined, delta = count + number, moments[0] - total[0]
        mean = total[0] + delta * (number / joined)
        squares = total[1] + moments[1] + delta.square() * (count * number / joined)
        count = joined
        total = torch.stack([mean, squares, torch.minimum(total[2], moments[2]), torch.maximum(total[3], moments[3])])
    std = (total[1] / count).sqrt().masked_fill(total[2] == total[3], 1.0)
    return {"mean": total[0].contiguous(), "std": std.contiguous()}, {}


def _moments(reader: BandReader, path: Path) -> tuple[int, Tensor]:
    """The number of pixels of an image, and of each band mean, sum of squared deviations, least and greatest value.

    They are float64 ``(4, C)``. A band takes the room of float64 at a time.
    """
    rows = []
    for band in reader(path):
        values = band.flatten().double()
        mean = values.mean()
        rows.append(torch.stack([mean, (values - mean).square().sum(), values.min(), values.max()]))
    return len(values), torch.stack(rows, dim=1)
