"""Pictures that are there very often, such as "image not found": exact copies, and flat ones that are nearly equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional

MANY = 5
"""A picture that is there at least so often is said to be a placeholder."""

MOST_CONTRAST = 16.0
"""Standard deviation of a thumbnail, of 255, up to which a picture counts as flat: mostly background."""

LEAST_CONTRAST = 0.5
"""What is flatter has one colour."""

MOST_APART = (3.0, 1.0)
"""The means of flat pictures that are nearly equal differ by at most so much, of 255; and those of one colour."""

LEAST_CORRELATION = 0.98
"""So much flat pictures that are nearly equal are correlated at least."""


def find_placeholders(
    pictures: Sequence[bytes], thumbs: NDArray[np.uint8] | None = None, copies: Iterable[Sequence[int]] = ()
) -> list[list[int]]:
    """Groups of at least `MANY` images that show one picture.

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
            alike = _small(thumbs[rows]) @ _small(thumbs[rows[:1]])[0] >= LEAST_CORRELATION
            pairs += [(rows[0], rows[i]) for i in alike.nonzero().flatten().tolist()]
    if not pairs:
        return []
    left, right = np.array(pairs).T
    linked = coo_matrix((np.ones(len(left), bool), (left, right)), (len(pictures), len(pictures)))
    group = connected_components(linked, directed=False)[1]
    sizes = np.bincount(group)
    return [np.flatnonzero(group == name).tolist() for name in np.flatnonzero(sizes >= MANY)]


def _pairs_of_flat(thumbs: NDArray[np.uint8], known: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Flat pictures, with the first that each is nearly equal to.

    Not by their hashes: those of a plain background are chance.
    """
    contrast = np.concatenate([part.std(axis=(1, 2, 3)) for part in np.array_split(thumbs, len(thumbs) // 4096 + 1)])
    flat = np.flatnonzero((contrast <= MOST_CONTRAST) & known)
    means = thumbs[flat].mean(axis=(2, 3))
    order = np.argsort(means.sum(axis=1), kind="stable")
    flat, means = flat[order], means[order]
    plain, small, total = contrast[flat] < LEAST_CONTRAST, _small(thumbs[flat]), means.sum(axis=1)
    stops = np.searchsorted(total, total + 3 * MOST_APART[0], side="right")  # what is further on is too bright
    pairs, taken = [], np.zeros(len(flat), bool)
    for i, stop in enumerate(stops.tolist()):
        if taken[i]:
            continue
        alike = plain[i:stop] == plain[i]
        if not plain[i]:
            alike &= (small[i:stop] @ small[i]).numpy() >= LEAST_CORRELATION
        alike &= np.abs(means[i:stop] - means[i]).max(axis=1) <= MOST_APART[int(plain[i])]
        alike[0] = False
        taken[i:stop] |= alike
        pairs += [(int(flat[i]), int(flat[j])) for j in np.flatnonzero(alike) + i]
    return pairs


def _small(thumbs: NDArray[np.uint8]) -> Tensor:
    """Grey pictures of 16 x 16, ``(N, 256)``, of mean 0 and length 1, whose products are correlations."""
    grey = torch.from_numpy(thumbs).float().mean(dim=1, keepdim=True)
    small = functional.avg_pool2d(grey, 2).flatten(1)
    return functional.normalize(small - small.mean(dim=1, keepdim=True))
