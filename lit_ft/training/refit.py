"""Refit: a second fit, on training and validation images, of what the first one chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from lit_ft.console import rank_zero_print
from lit_ft.data.modules.base import ImageDataModule
from lit_ft.data.modules.stream import StreamDataModule
from lit_ft.errors import UserError
from lit_ft.features.cache import FeatureCache
from lit_ft.features.shared_prefix import SharedPrefix
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.model.module import FineTuneModule
from lit_ft.model.sharding import is_sharding
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import find_best_callback, find_run
from lit_ft.training.calibrated_model import recalibrate
from lit_ft.training.evaluated import ImageLosses, quiet_validation
from lit_ft.training.handed_back import REFITTED, hand_back
from lit_ft.training.metrics_file import write_refit
from lit_ft.training.selection import Selected, blend
from lit_ft.unfreezing.callback import GradualUnfreezing
from lit_ft.unfreezing.view import find_unfreezing

_REPEATED = (GradualUnfreezing, FeatureCache, WeightAveraging, StochasticWeightAveraging)
"""The callbacks that decide on the weights; the others follow the first fit alone."""


class Refit(Callback):
    """Keeps what a second fit begins with: the weights before the first one, and its callbacks as they were.

    Args:
        trainer: The trainer of the first fit.
        module: The module that it fits.
        data: Its data.

    Raises:
        UserError: If the run cannot be fitted again.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, data: Any) -> None:
        _refuse_refit(trainer, module, data)
        callbacks = cast(Any, trainer).callbacks
        self._callbacks = [deepcopy(callback) for callback in callbacks if isinstance(callback, _REPEATED)]
        self._start: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Copies the weights, with the head of the classes, before a checkpoint is loaded."""
        if stage == "fit" and not self._start:
            self._start = _copy(pl_module)

    def fit(self, trainer: Any, module: Any, selected: Selected) -> None:
        """Fits again, and saves the weights as the best checkpoint of the run.

        The epochs are as many as the chosen weights had, under the same schedule.

        Args:
            trainer: The trainer of the first fit.
            module: The module, whose weights become those of the refit.
            selected: What was chosen.
        """
        run, data = find_run(trainer), join_validation(trainer.datamodule)
        torch.manual_seed(data.order_seed)  # so that it is the same after a fit that was interrupted
        calibration = module.calibration  # which a fit forgets
        module.load_state_dict(self._start)
        at_start, callbacks = _AtStart(selected.num_epochs), self._callbacks
        if not selected.share:
            norms = [callback.frozen_norm for callback in callbacks if isinstance(callback, GradualUnfreezing)]
            callbacks = [GradualUnfreezing("linear_probe", frozen_norm=norms[0], head_fit="solved")]
        if trainer.progress_bar_callback:
            callbacks = [*callbacks, trainer.progress_bar_callback]
        num_images, max_steps = data.sizes()["train"], trainer.max_steps
        if max_steps > 0:  # of longer epochs, so that the schedule is the same in epochs
            max_steps = math.ceil(max_steps * num_images / trainer.datamodule.sizes()["train"])
        second = trainer.again([*callbacks, at_start], max_steps)
        second.run = run
        try:
            second.fit(module, datamodule=data)
        except SystemExit:  # by which Lightning ends a fit that was interrupted; whoever called asks the first trainer
            trainer.state.status = second.state.status
            raise
        if 0 < selected.share < 1 and not _blend(trainer, module, at_start.state, selected.share):
            rank_zero_warn("the refit is left out, as its blend has a greater loss than both of what it blends")
            return
        recalibrate(trainer, module, calibration)
        best = find_best_callback(trainer)
        num_epochs = selected.num_epochs if selected.share else 0
        if best is not None and best.best_model_path and run is not None and trainer.is_global_zero:
            facts = {"images": num_images, "epochs": num_epochs, "share": selected.share}
            write_refit(run, facts, best.best_model_path)  # first, as a kill between the two must leave no false scores
            _save(trainer, module, best.best_model_path, selected.share)
        trainer.strategy.barrier("refit")
        epochs = f", {num_epochs} epochs" if num_epochs else ""
        rank_zero_print(f"Refit   on {num_images:,} images of train and val{epochs}; its scores on val mean nothing")


def _blend(trainer: Any, module: Any, probe: Mapping[str, Tensor], share: float) -> bool:
    """Gives a module the blend with its probe, if that is not worse than both, as it is where a barrier is between."""
    tuned = _copy(module)
    states = [probe, tuned, blend(probe, tuned, share)]
    losses, means = ImageLosses(SharedPrefix(trainer, module, states)), []
    with quiet_validation(trainer, losses):
        for state in states:
            module.load_state_dict(state)
            trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
            found = losses.gather(trainer)
            means.append(0.0 if found is None else float(found.mean()))
    return means[2] <= max(means[:2])


def join_validation(data: Any) -> Any:
    """The data module with the validation images among those that are trained on."""
    return data.with_splits({**data.splits, "train": data.splits["train"].join(data.splits["val"])})


class _AtStart(Callback):
    """Notes the weights that training begins with, and ends it after some epochs."""

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs
        self.state: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The head is solved by now."""
        self.state = _copy(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Asks the trainer to stop."""
        if trainer.current_epoch + 1 >= self.num_epochs:
            trainer.should_stop = True


def _refuse_refit(trainer: L.Trainer, module: Any, data: Any) -> None:
    if not isinstance(module, FineTuneModule) or not isinstance(data, ImageDataModule):
        raise UserError("`refit`: true is for FineTuneModule and the data modules of lit_ft; give false")
    if isinstance(data, StreamDataModule):  # litdata reads one folder
        raise UserError(f"`refit`: {type(data).__name__} cannot train on its validation images; give false")
    if is_sharding(trainer.strategy):
        raise UserError("`refit`: true needs the whole model in each process; give false, or `trainer.strategy` ddp")
    if not cast(Any, trainer).limit_val_batches:
        raise UserError(
            "`refit`: without validation nothing is chosen; give false, or leave `trainer.limit_val_batches` out"
        )
    unfreezing = find_unfreezing(trainer)
    phases = (unfreezing.phases or []) if unfreezing else []
    has_plateau = unfreezing is not None and (unfreezing.strategy == "plateau" or unfreezing.plateau is not None)
    if has_plateau or any(phase.plateau for phase in phases):
        raise UserError("`refit`: without validation no phase ends by a plateau; give false, or phases of given length")
    if "ReduceLROnPlateau" in str(module.hparams["lr_scheduler"]):
        raise UserError("`refit`: without validation ReduceLROnPlateau has no metric; give false, or another schedule")


def _copy(module: Any) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def _save(trainer: Any, module: Any, path: str, share: float) -> None:
    """Saves the weights with what a checkpoint of the first fit says of classes and options."""
    of_the_fit = {"loops", "callbacks"}
    content = {key: value for key, value in read_checkpoint(path).items() if key not in of_the_fit}
    content |= {"state_dict": _copy(module), REFITTED: True}
    if module.calibration is not None:
        content["calibration"] = module.calibration.plain()
    hand_back(trainer, path, content, share)
