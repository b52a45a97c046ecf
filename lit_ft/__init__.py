"""Fine-tune pretrained image models with PyTorch Lightning, stage by stage."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from lit_ft.errors import UserError

if TYPE_CHECKING:
    from lit_ft.backbones import Backbone, InputSpec, build_backbone
    from lit_ft.callbacks import FeatureCache, GradualUnfreezing, PredictionWriter, RunReport
    from lit_ft.checkpoint_io import AtomicCheckpointIO
    from lit_ft.data import (
        CIFAR10DataModule,
        DigitsDataModule,
        ImageFolderDataModule,
        ImageTableDataModule,
        MNISTToEMNISTDataModule,
        StreamDataModule,
    )
    from lit_ft.freezing import Staged
    from lit_ft.heads import HeadConfig
    from lit_ft.mixing import MixConfig
    from lit_ft.module import FineTuneModule
    from lit_ft.penalty import PenaltyConfig
    from lit_ft.plan import PhaseConfig, Plan, PlateauConfig
    from lit_ft.strategies import make_plan
    from lit_ft.trainer import Trainer

__all__ = [
    "AtomicCheckpointIO",
    "Backbone",
    "CIFAR10DataModule",
    "DigitsDataModule",
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
    "RunReport",
    "Staged",
    "StreamDataModule",
    "Trainer",
    "UserError",
    "build_backbone",
    "make_plan",
]

_HOMES = {
    "lit_ft.backbones": ["Backbone", "InputSpec", "build_backbone"],
    "lit_ft.callbacks": ["FeatureCache", "GradualUnfreezing", "PredictionWriter", "RunReport"],
    "lit_ft.checkpoint_io": ["AtomicCheckpointIO"],
    "lit_ft.data": [
        "CIFAR10DataModule",
        "DigitsDataModule",
        "ImageFolderDataModule",
        "ImageTableDataModule",
        "MNISTToEMNISTDataModule",
        "StreamDataModule",
    ],
    "lit_ft.freezing": ["Staged"],
    "lit_ft.heads": ["HeadConfig"],
    "lit_ft.mixing": ["MixConfig"],
    "lit_ft.module": ["FineTuneModule"],
    "lit_ft.penalty": ["PenaltyConfig"],
    "lit_ft.plan": ["PhaseConfig", "Plan", "PlateauConfig"],
    "lit_ft.strategies": ["make_plan"],
    "lit_ft.trainer": ["Trainer"],
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import lit_ft`` costs nothing."""
    for home, names in _HOMES.items():
        if name in names:
            # The plan needs no torch, and a torchvision that was imported belongs to its torch.
            if home not in ("lit_ft.plan", "lit_ft.strategies") and "torchvision" not in sys.modules:
                from lit_ft.errors import check_torchvision

                check_torchvision()
            globals()[name] = thing = getattr(importlib.import_module(home), name)  # the next time it is just there
            return thing
    raise AttributeError(f"module 'lit_ft' has no attribute {name!r}")
