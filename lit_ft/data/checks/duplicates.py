"""Exact and near copies of images."""

from __future__ import annotations

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

_LOW = np.uint64(48)
_WINDOW = 8
_MARGIN = 0.05
_SHIFTS = [(x, y) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]
"""Where a copy without a margin was cut: shares of the margin that are lost to the left and at the top."""

_VIEWS = [(None, False), (None, True), *((shift, False) for shift in _SHIFTS)]
"""What a copy may be of an image: where it was cut, if it was, and whether it is mirrored."""

Same = Literal["bytes", "look"]
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
    same: Same


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
        first = np.flatnonzero(known)[np.unique(kind[known], return_index=True)[1]]
        first.sort()
        near = near_copies(thumbs[torch.from_numpy(first)])
        pairs.append(first[near])
    left, right = np.concatenate(pairs, axis=1)
    linked = coo_matrix((np.ones(len(left), bool), (left, right)), (len(checksums), len(checksums)))
    group = connected_components(linked, directed=False)[1]
    rows = np.unique(np.concatenate([left, right]))
    found: dict[int, list[int]] = {}
    for row in rows.tolist():
        found.setdefault(int(group[row]), []).append(row)
    return [Group(rows, "bytes" if len(set(kind[rows].tolist())) == 1 else "look") for rows in found.values()]


def near_copies(thumbs: Tensor) -> Rows:
    """Pairs of images that are the same but for size, compression, brightness, mirroring, or a margin of up to 5%.

    Candidates are found by their difference hashes (N. Krawetz, "Kind of Like That", 2013: which of 8x8 places are
    brighter than the one to the left), of which at most `MOST_BITS` may differ. Different photos with the same large
    shapes have that, too, so the thumbnails are then laid upon one another, and may differ nowhere by much.

    Args:
        thumbs: uint8 ``(N, 3, 32, 32)``.

    Returns:
        Rows, ``(2, P)``.
    """
    busy = np.flatnonzero(
        torch.cat([part.float().std((1, 2, 3)) for part in torch.split(thumbs, 8192)]).numpy() >= LEAST_CONTRAST
    )
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
        apart = _apart(_small(left.flip(3) if mirror else left, shift), _small(right))
        alike[some] = apart.numpy() <= MOST_APART
    return alike


def _small(thumbs: Tensor, shift: tuple[float, float] | None = None) -> Tensor:
    """The thumbnails, or what is left without a margin, at half their side, with mean 0 and standard deviation 1."""
    small = _areas(16, shift and shift[1]) @ thumbs @ _areas(16, shift and shift[0]).T
    small = small - small.mean(dim=(1, 2, 3), keepdim=True)
    return small / small.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


def _apart(left: Tensor, right: Tensor) -> Tensor:
    """The greatest difference in any of 8x8 places."""
    return functional.avg_pool2d(left - right, 2).abs().mean(dim=1).amax(dim=(1, 2))


class _Index:
    """Finds hashes that differ in few bits without comparing all with all.

    Of two hashes within 7 bits, at least one of four bands of 16 bits differs in at most one (M. Norouzi et al., "Fast
    Search in Hamming Space with Multi-Index Hashing", 2012). So each band is looked up as it is and with each bit off.

    Args:
        hashes: ``(N,)``.
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
        """Rows of the query and of the index, ``(2, P)``, that differ in few bits, without those of the same row.

        Args:
            query: ``(N,)``.
            one_off: Whether to look bands up with each bit off, too.
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
