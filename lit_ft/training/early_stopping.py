"""Early stopping that monitors what every task logs."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's early stopping, of which no option must be given.

    Args:
        monitor: What to watch.
        mode: Whether its min or max is best.
        patience: Checks without improvement after which the run ends.
        min_delta: The least change that counts as an improvement.
        kwargs: As for Lightning's.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 5,
        min_delta: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor=monitor, mode=mode, patience=patience, min_delta=min_delta, **kwargs)
