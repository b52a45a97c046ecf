"""How far weights have moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor, nn


def measure_length(tensors: Sequence[Tensor]) -> float:
    """The norm of all numbers of some tensors together."""
    return float(nn.utils.get_total_norm([tensor.detach().float() for tensor in tensors])) if tensors else 0.0


def measure_change(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The norm of the change of some tensors, measured where they are after it.

    Args:
        pairs: Each tensor before and after, of one shape, wherever they lie.
    """
    both = ((before.detach().to(after.device, non_blocking=True), after.detach()) for before, after in pairs)
    return measure_length([after.float() - before.float() for before, after in both])


def relative_drift(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The norm of the change of some tensors by that of the tensors before it; nan where these are zero, or none.

    Args:
        pairs: Each tensor before and after, as for `measure_change`.
    """
    both = list(pairs)
    length = measure_length([before for before, _ in both])
    return measure_change(both) / length if length else math.nan
