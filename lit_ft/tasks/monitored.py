"""The metrics of each task, which a fit monitors, and whether the least or the greatest value is best. No torch."""

from __future__ import annotations

from typing import Literal

Mode = Literal["min", "max"]

MAIN_METRIC: dict[str, tuple[str, Mode]] = {
    "multiclass": ("val/acc", "max"),
    "multilabel": ("val/f1", "max"),
    "regression": ("val/mse", "min"),
}
"""The metric that the best checkpoint is chosen by, for each task."""

METRICS: dict[str, dict[str, Mode]] = {
    "multiclass": {"acc": "max", "acc_top5": "max", "precision": "max", "recall": "max", "f1": "max", "loss": "min"},
    "multilabel": {"acc": "max", "precision": "max", "recall": "max", "f1": "max", "loss": "min"},
    "regression": {"mse": "min", "mae": "min", "r2": "max", "loss": "min"},
}
"""The metrics that each task logs for validation and test."""
