"""Optimizers: parameter groups, learning-rate schedules, and the length of a run."""

from lit_ft.optim.optimizers import WarmupCosine

__all__ = ["WarmupCosine"]
