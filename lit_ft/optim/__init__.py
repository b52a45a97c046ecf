"""Optimizers: parameter groups, learning-rate schedules, and the length of a run."""

from lit_ft.optim.warmup_cosine import WarmupCosine

__all__ = ["WarmupCosine"]
