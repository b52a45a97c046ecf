"""The callbacks: carrying out the plan, keeping what is frozen, showing a run, and writing predictions."""

from lit_ft.callbacks.early_stopping import EarlyStopping
from lit_ft.callbacks.feature_cache import FeatureCache
from lit_ft.callbacks.predictions import PredictionWriter
from lit_ft.callbacks.report import RunReport
from lit_ft.callbacks.unfreezing import GradualUnfreezing

__all__ = ["EarlyStopping", "FeatureCache", "GradualUnfreezing", "PredictionWriter", "RunReport"]
