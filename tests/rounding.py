"""Comparison of results: with those of another order of the same arithmetic, and with scikit-learn's."""

import numpy as np
import torch

ROUNDINGS = 64
"""Of the largest value: kernels for other batch sizes, processors or threads sum some thousand terms in another order,
whose roundings add up like a random walk."""


def same_but_for_rounding(found, expected):
    """Whether two tensors differ by roundings alone, in the coarser of their types.

    The tolerance is a share of the largest value, not of each: what is a small difference of large terms has as much
    of an error as these.
    """
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (found, expected))
    found, expected = found.double(), expected.double()
    tolerance = ROUNDINGS * eps * expected.abs().max()
    return found.shape == expected.shape and bool((found - expected).abs().max() <= tolerance)


def by_sk(score, *tensors, **options):
    """A score of scikit-learn, which in its oldest supported version takes no tensors."""
    return score(*(np.asarray(tensor) for tensor in tensors), **options)
