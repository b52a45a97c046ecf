"""Names that the callbacks have in the configs of runs before 0.2."""

from lit_ft.evaluation.predictions import PredictionWriter
from lit_ft.evaluation.run_report import RunReport
from lit_ft.features.cache import FeatureCache
from lit_ft.training.trainer import EarlyStopping
from lit_ft.unfreezing.callback import GradualUnfreezing

__all__ = ["EarlyStopping", "FeatureCache", "GradualUnfreezing", "PredictionWriter", "RunReport"]
