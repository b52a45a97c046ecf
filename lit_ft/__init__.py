"""Fine-tune pretrained image models with PyTorch Lightning, stage by stage."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from lit_ft.errors import UserError as UserError
from lit_ft.errors import nearest

if TYPE_CHECKING:
    from lit_ft.backbones.backbone import Backbone as Backbone
    from lit_ft.backbones.build import build_backbone as build_backbone
    from lit_ft.backbones.freezing import Staged as Staged
    from lit_ft.backbones.input_spec import InputSpec as InputSpec
    from lit_ft.cli.api import Result as Result
    from lit_ft.cli.api import finetune as finetune
    from lit_ft.cli.api import run as run
    from lit_ft.cli.api import tune as tune
    from lit_ft.data import CIFAR10DataModule as CIFAR10DataModule
    from lit_ft.data import DigitsDataModule as DigitsDataModule
    from lit_ft.data import ImageArrayDataModule as ImageArrayDataModule
    from lit_ft.data import ImageDatasetDataModule as ImageDatasetDataModule
    from lit_ft.data import ImageFolderDataModule as ImageFolderDataModule
    from lit_ft.data import ImageTableDataModule as ImageTableDataModule
    from lit_ft.data import MNISTToEMNISTDataModule as MNISTToEMNISTDataModule
    from lit_ft.data import StreamDataModule as StreamDataModule
    from lit_ft.evaluation.explanations.maps import Explanation as Explanation
    from lit_ft.evaluation.explanations.maps import explain as explain
    from lit_ft.evaluation.inference import load as load
    from lit_ft.evaluation.predictions import PredictionWriter as PredictionWriter
    from lit_ft.evaluation.run_report import RunReport as RunReport
    from lit_ft.features.cache import FeatureCache as FeatureCache
    from lit_ft.model.heads import HeadConfig as HeadConfig
    from lit_ft.model.image_model import ImageModel as ImageModel
    from lit_ft.model.module import FineTuneModule as FineTuneModule
    from lit_ft.model.objective import PenaltyConfig as PenaltyConfig
    from lit_ft.model.prediction import Prediction as Prediction
    from lit_ft.model.preprocessing import MixConfig as MixConfig
    from lit_ft.training.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
    from lit_ft.training.trainer import EarlyStopping as EarlyStopping
    from lit_ft.training.trainer import Trainer as Trainer
    from lit_ft.unfreezing.callback import GradualUnfreezing as GradualUnfreezing
    from lit_ft.unfreezing.plan import PhaseConfig as PhaseConfig
    from lit_ft.unfreezing.plan import Plan as Plan
    from lit_ft.unfreezing.plan import PlateauConfig as PlateauConfig
    from lit_ft.unfreezing.strategies import make_plan as make_plan

_HOMES = {
    "lit_ft.backbones.backbone": ["Backbone"],
    "lit_ft.backbones.build": ["build_backbone"],
    "lit_ft.backbones.freezing": ["Staged"],
    "lit_ft.backbones.input_spec": ["InputSpec"],
    "lit_ft.cli.api": ["Result", "finetune", "run", "tune"],
    "lit_ft.data": [
        "CIFAR10DataModule",
        "DigitsDataModule",
        "ImageArrayDataModule",
        "ImageDatasetDataModule",
        "ImageFolderDataModule",
        "ImageTableDataModule",
        "MNISTToEMNISTDataModule",
        "StreamDataModule",
    ],
    "lit_ft.evaluation.explanations.maps": ["Explanation", "explain"],
    "lit_ft.evaluation.inference": ["load"],
    "lit_ft.evaluation.predictions": ["PredictionWriter"],
    "lit_ft.evaluation.run_report": ["RunReport"],
    "lit_ft.features.cache": ["FeatureCache"],
    "lit_ft.model.heads": ["HeadConfig"],
    "lit_ft.model.image_model": ["ImageModel"],
    "lit_ft.model.preprocessing": ["MixConfig"],
    "lit_ft.model.module": ["FineTuneModule"],
    "lit_ft.model.prediction": ["Prediction"],
    "lit_ft.model.objective": ["PenaltyConfig"],
    "lit_ft.training.checkpoint_io": ["AtomicCheckpointIO"],
    "lit_ft.training.trainer": ["EarlyStopping", "Trainer"],
    "lit_ft.unfreezing.callback": ["GradualUnfreezing"],
    "lit_ft.unfreezing.plan": ["PhaseConfig", "Plan", "PlateauConfig"],
    "lit_ft.unfreezing.strategies": ["make_plan"],
}

__all__ = sorted(["UserError", *chain(*_HOMES.values())])

_ELSEWHERE = {
    "train fit fit_one_cycle fine_tune fine_tuning": "lit_ft.finetune",
    "load_model load_learner load_from_checkpoint predict": "lit_ft.load(RUN).predict(PHOTOS)",
    "create_model get_model backbone": "lit_ft.build_backbone",
    "test evaluate validate": "lit_ft.Trainer",
    "ImageFolder ImageDataLoaders DataModule": "lit_ft.ImageFolderDataModule",
    "Dataset TensorDataset datasets": "lit_ft.ImageDatasetDataModule",
    "BackboneFinetuning Freeze Unfreezing": "lit_ft.GradualUnfreezing",
}
"""By the names of other libraries, what does it here."""

_WITHOUT_TORCH = ("lit_ft.unfreezing.plan", "lit_ft.unfreezing.strategies")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``import lit_ft`` costs nothing."""
    for home, names in _HOMES.items():
        if name in names:
            # The plan needs no torch, and a torchvision that was imported belongs to its torch.
            if home not in _WITHOUT_TORCH and "torchvision" not in sys.modules:
                from lit_ft.errors import check_torchvision

                check_torchvision()
            globals()[name] = thing = getattr(importlib.import_module(home), name)  # the next time it is just there
            return thing
    if name == "__version__":
        from importlib import metadata  # slow to load

        return metadata.version("lit_ft")
    # With a name and no object, Python adds no advice of its own.
    raise AttributeError(f"module 'lit_ft' has no attribute {name!r}{_advise(name)}", name=name)


def __dir__() -> list[str]:
    """The public names, also those that are not imported yet."""
    return [*__all__, "__version__"]


@cache  # as the parser asks for the same names again and again, and for the message of none
def _advise(name: str) -> str:
    """The end of a message to a user who asked for a name that does not exist."""
    instead = next((here for names, here in _ELSEWHERE.items() if name in names.split()), None)
    if instead is None and not name.startswith("_"):
        close = nearest(name, __all__, most=1)
        instead = f"lit_ft.{close[0]}" if close else None
    return f"; use {instead}" if instead else ""
