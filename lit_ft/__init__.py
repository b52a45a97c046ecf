"""Fine-tune pretrained image models with PyTorch Lightning, stage by stage."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from lit_ft.errors import UserError

if TYPE_CHECKING:
    from lit_ft.backbones.backbone import Backbone
    from lit_ft.backbones.build import build_backbone
    from lit_ft.backbones.freezing import Staged
    from lit_ft.backbones.input_spec import InputSpec
    from lit_ft.cli.api import Result, finetune, run
    from lit_ft.data import (
        CIFAR10DataModule,
        DigitsDataModule,
        ImageFolderDataModule,
        ImageTableDataModule,
        MNISTToEMNISTDataModule,
        StreamDataModule,
    )
    from lit_ft.evaluation.predictions import PredictionWriter
    from lit_ft.evaluation.run_report import RunReport
    from lit_ft.features.cache import FeatureCache
    from lit_ft.model.heads import HeadConfig
    from lit_ft.model.module import FineTuneModule
    from lit_ft.model.objective import PenaltyConfig
    from lit_ft.model.preprocessing import MixConfig
    from lit_ft.training.checkpoint_io import AtomicCheckpointIO
    from lit_ft.training.early_stopping import EarlyStopping
    from lit_ft.training.trainer import Trainer
    from lit_ft.unfreezing.callback import GradualUnfreezing
    from lit_ft.unfreezing.plan import PhaseConfig, Plan, PlateauConfig
    from lit_ft.unfreezing.strategies import make_plan

__all__ = [
    "AtomicCheckpointIO",
    "Backbone",
    "CIFAR10DataModule",
    "DigitsDataModule",
    "EarlyStopping",
    "FeatureCache",
    "FineTuneModule",
    "GradualUnfreezing",
    "HeadConfig",
    "ImageFolderDataModule",
    "ImageTableDataModule",
    "InputSpec",
    "MNISTToEMNISTDataModule",
    "MixConfig",
    "PenaltyConfig",
    "PhaseConfig",
    "Plan",
    "PlateauConfig",
    "PredictionWriter",
    "Result",
    "RunReport",
    "Staged",
    "StreamDataModule",
    "Trainer",
    "UserError",
    "build_backbone",
    "finetune",
    "make_plan",
    "run",
]

_HOMES = {
    "lit_ft.backbones.backbone": ["Backbone"],
    "lit_ft.backbones.build": ["build_backbone"],
    "lit_ft.backbones.freezing": ["Staged"],
    "lit_ft.backbones.input_spec": ["InputSpec"],
    "lit_ft.cli.api": ["Result", "finetune", "run"],
    "lit_ft.data": [
        "CIFAR10DataModule",
        "DigitsDataModule",
        "ImageFolderDataModule",
        "ImageTableDataModule",
        "MNISTToEMNISTDataModule",
        "StreamDataModule",
    ],
    "lit_ft.evaluation.predictions": ["PredictionWriter"],
    "lit_ft.evaluation.run_report": ["RunReport"],
    "lit_ft.features.cache": ["FeatureCache"],
    "lit_ft.model.heads": ["HeadConfig"],
    "lit_ft.model.preprocessing": ["MixConfig"],
    "lit_ft.model.module": ["FineTuneModule"],
    "lit_ft.model.objective": ["PenaltyConfig"],
    "lit_ft.training.checkpoint_io": ["AtomicCheckpointIO"],
    "lit_ft.training.early_stopping": ["EarlyStopping"],
    "lit_ft.training.trainer": ["Trainer"],
    "lit_ft.unfreezing.callback": ["GradualUnfreezing"],
    "lit_ft.unfreezing.plan": ["PhaseConfig", "Plan", "PlateauConfig"],
    "lit_ft.unfreezing.strategies": ["make_plan"],
}


_WITHOUT_TORCH = ("lit_ft.unfreezing.plan", "lit_ft.unfreezing.strategies")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import lit_ft`` costs nothing."""
    for home, names in _HOMES.items():
        if name in names:
            # The plan needs no torch, and a torchvision that was imported belongs to its torch.
            if (
                home not in ("lit_ft.unfreezing.plan", "lit_ft.unfreezing.strategies")
                and "torchvision" not in sys.modules
            ):
                from lit_ft.errors import check_torchvision

                check_torchvision()
            globals()[name] = thing = getattr(importlib.import_module(home), name)  # the next time it is just there
            return thing
    raise AttributeError(f"module 'lit_ft' has no attribute {name!r}")
