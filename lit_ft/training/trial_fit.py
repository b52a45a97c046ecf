"""Fine-tuning trials of `lit-ft probe`: short fits on folds of the images, within a time limit, that leave nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lit_ft.console import format_duration, rank_zero_print
from lit_ft.errors import UserError
from lit_ft.model.heads import HeadConfig
from lit_ft.model.module import FineTuneModule
from lit_ft.model.preprocessing import MixConfig
from lit_ft.probes.feature_pass import compute_stage_features
from lit_ft.probes.heads.solver import LOSSES, Targets
from lit_ft.probes.images import ProbeImages
from lit_ft.probes.survey import BackboneProbe
from lit_ft.probes.trial import Costs, HeldOut, Trial, TrialSize, compare, draw_images, plan_trial
from lit_ft.training.progress import build_progress_bar
from lit_ft.training.trainer import Trainer
from lit_ft.unfreezing.callback import GradualUnfreezing

_FEW_EPOCHS = 4
"""Epochs of a trial on a part of the images."""

_ONE_PHASE = ("full", "deepest", "lp_ft", "auto")
"""Strategies that from a solved head have one phase, which may be of any length."""

_CARRIED = (
    "precision", "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "enable_progress_bar",
)  # fmt: skip
"""The options of a trainer that a trial has, too."""


@dataclass(frozen=True)
class TrialConfig:
    """The fine-tuning that is tried.

    Args:
        build: Builds the module with the backbone that is tried, and what unfreezes it from a solved head.
        strategy: How that unfreezes it.
        trainer: Options of the trainer.
        device: Where to compute.
        budget: Seconds for all of it.
    """

    build: Callable[[], tuple[FineTuneModule, GradualUnfreezing]]
    strategy: str
    trainer: Mapping[str, Any]
    device: torch.device
    budget: float


def refuse_untried(model: Mapping[str, Any], unfreeze: Mapping[str, Any] | None, max_epochs: int | None) -> None:
    """Raises `UserError` for options of a config, as plain values, that leave nothing to try.

    Args:
        model: Options of the module.
        unfreeze: Options of the unfreezing, if there is one.
        max_epochs: Length of a run.
    """
    head, mix = HeadConfig(**(model.get("head") or {})), MixConfig(**(model.get("mix") or {}))
    idle, start = "leaves nothing to try", "a trial begins with a solved head"
    reasons = (
        (unfreeze is None, f"`unfreeze` null {idle}"),
        (unfreeze and unfreeze.get("strategy") == "linear_probe", f"`unfreeze.strategy` linear_probe {idle}"),
        (max_epochs == 0, f"`trainer.max_epochs` 0 {idle}"),
        (head.hidden, f"{start}, and that is linear, without `model.head.hidden`"),
        (head.kind != "linear", f"{start}, and that is linear, not `model.head.kind` {head.kind}"),
        (any(vars(mix).values()), f"{start}, and that is solved on images as they are, without `model.mix`"),
    )
    if reason := next((reason for applies, reason in reasons if applies), None):
        raise UserError(f"`budget`: {reason}; leave one of the two out")


def try_fine_tuning(config: TrialConfig, images: ProbeImages, best: BackboneProbe) -> Trial:
    """Fine-tunes a backbone on a part of the images, and compares it with the linear probe that it began with.

    Args:
        config: The fine-tuning.
        images: The images.
        best: What is known about the backbone.

    Raises:
        UserError: If the budget is too small, or the fine-tuning is refused.
    """
    began, costs = time.monotonic(), Costs(best.feature_seconds / len(images), best.solver_seconds)
    num_images, num_folds, most = len(images.firsts), images.num_folds(), config.trainer["max_epochs"]
    most = most if most and most > 0 else _FEW_EPOCHS
    least = min(most, _FEW_EPOCHS) if config.strategy in _ONE_PHASE else most
    size = plan_trial(num_images, num_folds, costs, config.budget, least, most)
    rank_zero_print(
        f"Fine-tuning {best.name} for a trial: {size.num_epochs} epochs, {size.num_tried} of {size.num_folds} folds of "
        f"{size.num_images:,} images; predicted {format_duration(costs.predict(size))}"
    )
    parts, num_epochs = _try_folds(config, images, size, began, costs)
    comparison, num_train = compare(parts, images), size.num_images * (size.num_folds - 1) // size.num_folds
    verdict, reason = comparison.judge(num_epochs * num_train / (most * len(images.splits["train"])))
    return Trial(
        backbone=best.name,
        num_images=num_images,
        num_train=num_train,
        num_held_out=sum(len(part.rows) for part in parts),
        num_folds=len(parts),
        num_epochs=num_epochs,
        planned=size,
        comparison=comparison,
        verdict=verdict,
        reason=reason,
        budget=config.budget,
        predicted_seconds=costs.predict(size),
        seconds=time.monotonic() - began,
        whole_seconds=costs.predict(TrialSize(num_images, 2, 1, most)),
    )


def _try_folds(
    config: TrialConfig, images: ProbeImages, size: TrialSize, began: float, costs: Costs
) -> tuple[list[HeldOut], float]:
    """What came of the folds that there was time for, or of a part of the first, and the epochs of each."""
    rows, folds = draw_images(images, size)
    seed, parts = torch.initial_seed(), list[HeldOut]()
    for fold in range(size.num_folds):  # more than were planned, where these took less than predicted
        spent = time.monotonic() - began
        if fold and spent * (fold + 1) / fold > config.budget:
            break
        torch.manual_seed(seed)  # so that weights that are random are the same in each fold; a fit sets it at each step
        observer, held = _Observer(began + config.budget, costs.pass_seconds), folds == fold
        part = _try_fold(config, images, rows[~held], rows[held], size.num_epochs, observer)
        if fold == 0 and observer.num_epochs < size.num_epochs:
            return [part], observer.num_epochs
        if observer.num_epochs == size.num_epochs:
            parts.append(part)
    return parts, size.num_epochs


def _try_fold(
    config: TrialConfig, images: ProbeImages, train: Tensor, held: Tensor, num_epochs: int, observer: _Observer
) -> HeldOut:
    """Fits a model on some images, and predicts those that are held out."""
    module, unfreezing = config.build()
    data = images.data.with_splits({"train": images.part(train), "val": images.part(held)})
    options = {key: value for key in _CARRIED if (value := config.trainer.get(key)) is not None}
    bar = [] if options.get("enable_progress_bar") is False else [build_progress_bar()]
    trainer = Trainer(
        accelerator=config.device.type, devices=1, max_epochs=num_epochs, callbacks=[unfreezing, observer, *bar],
        logger=False, enable_checkpointing=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit:  # by which Lightning ends a fit that was interrupted
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    given = data.splits["val"].targets
    if module.task.standardisation is not None:
        given = module.task.standardisation.standardise(given)
    loss = LOSSES[module.task.name]
    values = given if loss == "softmax" else given.reshape(len(given), -1)
    targets = Targets(loss, values, module.task.num_outputs)
    return HeldOut(held, targets, observer.probe, torch.cat(observer.logits))


class _Observer(Callback):
    """Takes the predictions of the linear probe and of the last validation, and ends a fit in time for that.

    Args:
        deadline: When the fit must have ended, by `time.monotonic`.
        pass_seconds: Seconds in which an image is expected to pass the network, until a validation has shown it.
    """

    def __init__(self, deadline: float, pass_seconds: float) -> None:
        self._deadline = deadline
        self._pass_seconds = pass_seconds
        self._clock = 0.0  # when the step or validation began
        self._longest: dict[str, float] = {"step": 0.0}
        self._num_batches = 0
        self.probe = torch.empty(0)
        self.logits: list[Tensor] = []
        self.num_epochs = 0.0
        """Epochs that were done."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Predicts with the head as it was solved, on the features that this has left in the cache."""
        module, data = cast(FineTuneModule, pl_module), cast(Any, trainer).datamodule
        was_training = module.training
        module.eval()
        source = data.source("val", augment=False)
        found = compute_stage_features(module.backbone, module.normalise, source, data.batch_size, only_last=True)
        module.train(was_training)
        last = cast(nn.Linear, module.head[-1])
        weight, bias = (values.detach().cpu().double() for values in (last.weight, last.bias))
        self.probe = found.last.double() @ weight.T + bias

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._clock = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the step."""
        self._num_batches += 1
        self.num_epochs = self._num_batches / trainer.num_training_batches
        self._end_in_time(trainer, "step")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._clock, self.logits = time.monotonic(), []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes the predictions of a batch."""
        if not isinstance(outputs, Mapping) or "logits" not in outputs:
            raise UserError(f"{type(pl_module).__name__}.validation_step: returns no logits, which a trial compares")
        self.logits.append(outputs["logits"].detach().cpu())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the fit where no further step can be validated."""
        self._end_in_time(trainer, "validation")

    def _end_in_time(self, trainer: L.Trainer, done: str) -> None:
        """Notes how long a step or validation took, and ends the fit where there is no time for another of both."""
        now = time.monotonic()
        self._longest[done] = max(self._longest.get(done, 0.0), now - self._clock)
        self._clock = now
        validation = self._longest.get("validation", self._pass_seconds * len(self.probe))
        if now + self._longest["step"] + validation > self._deadline:
            trainer.should_stop = True
