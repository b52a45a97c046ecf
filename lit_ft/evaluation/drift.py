"""How far weights have moved."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def relative_drift(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The norm of the change of some tensors by that of the tensors before it; nan where these are zero, or none.

    Args:
        pairs: Each tensor before and after, of one shape, wherever they lie.
    """
    moved = length = 0.0
    for before, after in pairs:
        first = before.detach().cpu().double()
        moved += float((after.detach().cpu().double() - first).square().sum())
        length += float(first.square().sum())
    return math.sqrt(moved / length) if length else math.nan
