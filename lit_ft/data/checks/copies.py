"""Copies of images, exact and near, and pictures that are there so often that they are placeholders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

THUMB = 32
"""Side of the thumbnails, in pixels."""

MOST_BITS = 7
"""Near copies differ in at most so many of the 64 bits of their hashes; 4 bands found with one bit off allow for 7."""

MOST_APART = 0.4
"""Near copies differ nowhere by more, as a mean over a 64th of the image, in standard deviations of the image."""

LEAST_CONTRAST = 6.0
"""Least standard deviation of a thumbnail, of 255: what is flatter has too little in it to be compared."""

MANY = 5
"""A picture that is there at least so often is said to be a placeholder."""

FLAT_CONTRAST = 16.0
"""Standard deviation of a thumbnail, of 255, up to which a picture counts as flat: mostly background."""

PLAIN_CONTRAST = 0.5
"""What is flatter has one colour."""

FLAT_APART = (3.0, 1.0)
"""The means of flat pictures that are nearly equal differ by at most so much, of 255; and those of one colour."""

LEAST_CORRELATION = 0.98
"""So much flat pictures that are nearly equal are correlated at least."""

_LOW = np.uint64(48)
_WINDOW = 8
_MARGIN = 0.05

_VIEWS = [(None, False), (None, True), *(((x, y), False) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0))]
"""What a copy may be of an image: where its margin was cut, as shares lost to the left and at the top, and mirrored."""

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Images that show the same.

    Args:
        rows: Which, ascending.
        same: ``bytes`` where all are exact copies, ``look`` where at least one is resized, cropped, mirrored or such.
    """

    rows: list[int]
    same: Literal["bytes", "look"]


def find_duplicates(checksums: NDArray[Any], thumbs: Tensor | None) -> list[Group]:
    """Groups the images that show the same.

    Args:
        checksums: What exact copies have in common, ``(N,)``; empty bytes for what is compared with nothing.
        thumbs: What near copies have nearly in common, uint8 ``(N, 3, 32, 32)``, or nothing.
    """
    kind = np.unique(checksums, return_inverse=True)[1]
    known = checksums != np.zeros(1, checksums.dtype)[0]
    order = np.argsort(kind, kind="stable")
    same_as_next = (kind[order][1:] == kind[order][:-1]) & known[order][1:]
    pairs = [np.stack([order[:-1][same_as_next], order[1:][same_as_next]])]
    if thumbs is not None:
        # One of each group of exact copies is enough.
        first = np.sort(np.flatnonzero(known)[np.unique(kind[known], return_index=True)[1]])
        pairs.append(first[near_copies(thumbs[torch.from_numpy(first)])])
    groups = _connected(np.concatenate(pairs, axis=1), len(checksums))
    return [Group(rows, "bytes" if len(set(kind[rows].tolist())) == 1 else "look") for rows in groups]


def find_placeholders(
    pictures: Sequence[bytes], thumbs: NDArray[np.uint8] | None = None, copies: Iterable[Sequence[int]] = ()
) -> list[list[int]]:
    """Groups of at least `MANY` images that show one picture, such as "image not found".

    Args:
        pictures: What images of one picture have in common, such as a checksum; empty for what cannot be read.
        thumbs: What images of one picture have nearly in common, ``(N, 3, 32, 32)``.
        copies: Rows of images that are near copies, and may be of one picture.

    Returns:
        The rows of each group, ascending.
    """
    first: dict[bytes, int] = {}
    pairs = [(first.setdefault(picture, row), row) for row, picture in enumerate(pictures) if picture]
    if thumbs is not None:
        pairs += _pairs_of_flat(thumbs, np.array([bool(picture) for picture in pictures]))
        for rows in copies:
            alike = _grey(thumbs[rows]) @ _grey(thumbs[rows[:1]])[0] >= LEAST_CORRELATION
            pairs += [(rows[0], rows[i]) for i in alike.nonzero().flatten().tolist()]
    groups = _connected(np.array(pairs, np.int64).reshape(-1, 2).T, len(pictures))
    return [rows for rows in groups if len(rows) >= MANY]


def _connected(pairs: Rows, num: int) -> list[list[int]]:
    """The rows, of ``num``, that pairs ``(2, P)`` connect, ascending in each group."""
    linked = coo_matrix((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), (num, num))
    group = connected_components(linked, directed=False)[1]
    found: dict[int, list[int]] = {}
    for row in np.unique(pairs).tolist():
        found.setdefault(int(group[row]), []).append(row)
    return list(found.values())


def near_copies(thumbs: Tensor) -> Rows:
    """Pairs ``(2, P)`` of images equal but for size, compression, brightness, mirroring, or a margin of up to 5%.

    Candidates are found by their difference hashes (N. Krawetz, "Kind of Like That", 2013: which of 8x8 places are
    brighter than the one to the left), of which at most `MOST_BITS` may differ. Different photos with the same large
    shapes have that, too, so the thumbnails ``(N, 3, 32, 32)`` are then laid upon one another, and may differ nowhere
    by much.
    """
    contrast = torch.cat([part.float().std((1, 2, 3)) for part in torch.split(thumbs, 8192)]).numpy()
    busy = np.flatnonzero(contrast >= LEAST_CONTRAST)
    if len(busy) < 2:
        return np.zeros((2, 0), np.int64)
    thumbs = thumbs[torch.from_numpy(busy)]
    whole, *others = _hashes(thumbs)
    index = _Index(whole)
    found = [np.zeros((2, 0), np.int64)]
    for (shift, mirror), hashes in zip(_VIEWS, (whole, *others), strict=True):
        # A margin is known, so that the hashes of what is left without it differ less.
        pairs = index.close(hashes, one_off=shift is None)
        found.append(pairs[:, _alike(thumbs, pairs, shift, mirror)])
    pairs = np.sort(np.concatenate(found, axis=1), axis=0)
    return busy[np.unique(pairs, axis=1)]


def _hashes(thumbs: Tensor) -> list[Hashes]:
    """The difference hashes, ``(N,)``, of all views of the images."""
    columns: list[list[Hashes]] = [[] for _ in _VIEWS]
    sides = [(_areas(8, shift and shift[1]), _areas(9, shift and shift[0]).T) for shift, _ in _VIEWS]
    for part in torch.split(thumbs, 8192):
        grey = part.float().mean(dim=1)
        for (rows, places), (_, mirror), column in zip(sides, _VIEWS, columns, strict=True):
            grid = (grey @ places).transpose(1, 2) @ rows.T
            brighter = (grid.flip(1) if mirror else grid).diff(dim=1) > 0
            column.append(np.packbits(brighter.flatten(1).numpy(), axis=1).view(np.uint64).ravel())
    return [np.concatenate(column) for column in columns]


def _areas(num: int, shift: float | None) -> Tensor:
    """The weights, ``(num, 32)``, that average a thumbnail's side over ``num`` parts of it."""
    first, length = (0.0, 1.0) if shift is None else (_MARGIN * shift, 1 - _MARGIN)
    edges = THUMB * (first + length * torch.linspace(0, 1, num + 1))
    pixels = torch.arange(THUMB)
    overlap = torch.minimum(edges[1:, None], pixels + 1.0) - torch.maximum(edges[:-1, None], pixels.float())
    return overlap.clamp(min=0) * num / (THUMB * length)


def _alike(thumbs: Tensor, pairs: Rows, shift: tuple[float, float] | None, mirror: bool) -> NDArray[np.bool_]:
    """Which pairs, ``(2, P)``, show the same, where the first of each is looked at in this view."""
    alike = np.zeros(pairs.shape[1], bool)
    for start in range(0, len(alike), 4096):
        some = slice(start, start + 4096)
        left, right = (thumbs[torch.from_numpy(rows[some])].float() for rows in pairs)
        difference = _small(left.flip(3) if mirror else left, shift) - _small(right)
        apart = functional.avg_pool2d(difference, 2).abs().mean(dim=1).amax(dim=(1, 2))  # in any of 8x8 places
        alike[some] = apart.numpy() <= MOST_APART
    return alike


def _small(thumbs: Tensor, shift: tuple[float, float] | None = None) -> Tensor:
    """The thumbnails, or what is left without a margin, at half their side, with mean 0 and standard deviation 1."""
    small = _areas(16, shift and shift[1]) @ thumbs @ _areas(16, shift and shift[0]).T
    small = small - small.mean(dim=(1, 2, 3), keepdim=True)
    return small / small.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


class _Index:
    """Finds hashes ``(N,)`` that differ in few bits without comparing all with all.

    Of two hashes within 7 bits, at least one of four bands of 16 bits differs in at most one (M. Norouzi et al., "Fast
    Search in Hamming Space with Multi-Index Hashing", 2012). So each band is looked up as it is and with each bit off.
    """

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        self._bands = []
        for band in range(4):
            turned = _rotated(hashes, 16 * band)
            order = np.argsort(turned, kind="stable")
            starts = np.searchsorted(turned[order] >> _LOW, np.arange((1 << 16) + 1, dtype=np.uint64))
            self._bands.append((order, turned[order], starts))

    def close(self, query: Hashes, one_off: bool) -> Rows:
        """Rows of the query ``(N,)`` and of the index, ``(2, P)``, that differ in few bits, but are not the same row.

        With ``one_off``, bands are looked up with each bit off, too.
        """
        flips = [0, *(1 << bit for bit in range(48, 64) if one_off)]
        found = [np.zeros((2, 0), np.int64)]
        for start in range(0, len(query), 1 << 18):
            some = query[start : start + (1 << 18)]
            for band, flip in product(range(4), flips):
                left, right = self._same_band(_rotated(some, 16 * band) ^ np.uint64(flip), band)
                few = (_bits(some[left] ^ self._hashes[right]) <= MOST_BITS) & (left + start != right)
                found.append(np.stack([left[few] + start, right[few]]))
        return np.unique(np.concatenate(found, axis=1), axis=1)

    def _same_band(self, probes: Hashes, band: int) -> tuple[Rows, Rows]:
        order, turned, starts = self._bands[band]
        bucket = (probes >> _LOW).astype(np.int64)
        low, high = starts[bucket], starts[bucket + 1]
        # Where very many images share a band, each meets those next to it in order.
        if len(crowded := np.flatnonzero(high - low > 2 * _WINDOW)):
            middle = np.searchsorted(turned, probes[crowded])
            low[crowded] = np.maximum(low[crowded], middle - _WINDOW)
            high[crowded] = np.minimum(high[crowded], middle + _WINDOW)
        counts = high - low
        left = np.repeat(np.arange(len(probes)), counts)
        places = np.arange(len(left)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        return left, order[places]


def _rotated(hashes: Hashes, bits: int) -> Hashes:
    return hashes if bits == 0 else (hashes << np.uint64(bits)) | (hashes >> np.uint64(64 - bits))


def _bits(words: Hashes) -> Hashes:
    """The number of bits that are set; numpy counts them itself since 2.0."""
    ones, twos, fours = (np.uint64(n) for n in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    words = words - ((words >> np.uint64(1)) & ones)
    words = (words & twos) + ((words >> np.uint64(2)) & twos)
    words = (words + (words >> np.uint64(4))) & fours
    words = (words * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return words


def _pairs_of_flat(thumbs: NDArray[np.uint8], known: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Flat pictures, with the first that each is nearly equal to.

    Not by their hashes: those of a plain background are chance.
    """
    contrast = np.concatenate([part.std(axis=(1, 2, 3)) for part in np.array_split(thumbs, len(thumbs) // 4096 + 1)])
    flat = np.flatnonzero((contrast <= FLAT_CONTRAST) & known)
    means = thumbs[flat].mean(axis=(2, 3))
    order = np.argsort(means.sum(axis=1), kind="stable")
    flat, means = flat[order], means[order]
    plain, small, total = contrast[flat] < PLAIN_CONTRAST, _grey(thumbs[flat]), means.sum(axis=1)
    stops = np.searchsorted(total, total + 3 * FLAT_APART[0], side="right")  # what is further on is too bright
    pairs, taken = [], np.zeros(len(flat), bool)
    for i, stop in enumerate(stops.tolist()):
        if taken[i]:
            continue
        alike = plain[i:stop] == plain[i]
        if not plain[i]:
            alike &= (small[i:stop] @ small[i]).numpy() >= LEAST_CORRELATION
        alike &= np.abs(means[i:stop] - means[i]).max(axis=1) <= FLAT_APART[int(plain[i])]
        alike[0] = False
        taken[i:stop] |= alike
        pairs += [(int(flat[i]), int(flat[j])) for j in np.flatnonzero(alike) + i]
    return pairs


def _grey(thumbs: NDArray[np.uint8]) -> Tensor:
    """Grey pictures of 16 x 16, ``(N, 256)``, of mean 0 and length 1, whose products are correlations."""
    grey = torch.from_numpy(thumbs).float().mean(dim=1, keepdim=True)
    small = functional.avg_pool2d(grey, 2).flatten(1)
    return functional.normalize(small - small.mean(dim=1, keepdim=True))
