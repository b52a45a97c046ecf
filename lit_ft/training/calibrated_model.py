"""Calibration of the model that a fine-tuning hands back, on its validation images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import classification

from lit_ft.console import rank_zero_print
from lit_ft.features.source import find_own_step
from lit_ft.model.calibration import Calibration, fit_label_sets, fit_temperature
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.model.heads import divide_logits, takes_temperature
from lit_ft.model.module import FineTuneModule
from lit_ft.model.sharding import is_sharding
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import find_best_callback, find_best_path, find_run
from lit_ft.tasks.task import Task
from lit_ft.training.evaluated import quiet_validation
from lit_ft.training.handed_back import SHARE, hand_back
from lit_ft.training.metrics_file import update_metrics, write_calibration
from lit_ft.training.selected import OutputRecorder, ValidationOutputs

_MOST_LOGITS = 1 << 27
"""Logits of a process from which a model is not calibrated."""

BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""


def calibrate_best(trainer: Any, module: Any) -> ValidationOutputs | None:
    """Calibrates the best checkpoint of a fit, and leaves the module with its weights.

    Logits are divided by a temperature, which the last layer of the head takes into its weights. What a predicted class
    and an image need to be taken for sure and for known is saved beside them. Where no checkpoint was chosen, or a
    module has a validation step of its own that does not give logits, nothing is done.

    Returns:
        What the calibrated model gives for the validation images; None where nothing was done.
    """
    best = find_best_path(trainer)
    if best is None or trainer.fast_dev_run or not trainer.limit_val_batches or not isinstance(module, FineTuneModule):
        return None
    if is_sharding(trainer.strategy):
        rank_zero_warn("the model is not calibrated, as no process holds it whole")
        return None
    checkpoint = read_checkpoint(best) if trainer.is_global_zero else {}
    module.load_state_dict(trainer.strategy.broadcast(checkpoint.get("state_dict")))
    outputs = _validate(trainer, module)
    if outputs is None:
        return None
    can_divide = takes_temperature(module.head) and find_own_step(module, "validation_step") is None
    found, facts = _calibrate(module.task, outputs, can_divide)
    # From the first process, as the arithmetic of others may differ.
    module.calibration = trainer.strategy.broadcast(found)
    divide_logits(module.head, module.calibration.temperature)
    logits = outputs.logits.float() / module.calibration.temperature
    run = find_run(trainer)
    _note_loss(find_best_callback(trainer), checkpoint, facts["loss_after"])
    if trainer.is_global_zero and run is not None:
        changed = {"state_dict": module.state_dict(), "calibration": found.plain()}
        hand_back(trainer, best, {**checkpoint, **changed}, checkpoint.get(SHARE, 1.0))
        write_calibration(run, facts)
        update_metrics(run, "val", {"val/loss": facts["loss_after"]})
        rank_zero_print(_format(facts, found, module.task))
    trainer.strategy.barrier("calibration")
    return replace(outputs, logits=logits, metrics={**outputs.metrics, "val/loss": facts["loss_after"]})


def _note_loss(callback: Any, checkpoint: Any, loss: float) -> None:
    """Lets the score of the best checkpoint be that of the calibrated model, where it is its loss.

    Args:
        callback: The callback that has chosen the checkpoint.
        checkpoint: The checkpoint, from which a test takes the score.
        loss: The loss of the calibrated model.
    """
    if callback.monitor != "val/loss":
        return
    callback.best_model_score = torch.tensor(loss)
    if callback.state_key in checkpoint.get("callbacks", {}):
        checkpoint["callbacks"][callback.state_key]["best_model_score"] = callback.best_model_score


def recalibrate(trainer: Any, module: Any, known: Calibration | None) -> None:
    """Gives a module whose weights were fitted again, also to the validation images, the calibration from before that.

    These images are still what others are compared with, by their features as they are now.
    """
    if known is None:
        return
    outputs = _validate(trainer, module)
    if outputs is not None and outputs.features is not None:
        known = known.with_references(outputs.features)
    module.calibration = trainer.strategy.broadcast(known)
    divide_logits(module.head, known.temperature)


def _calibrate(task: Task, outputs: ValidationOutputs, can_divide: bool) -> tuple[Calibration, dict[str, Any]]:
    """The calibration by validation images, and what a run tells of it."""
    logits, targets = outputs.logits.float(), outputs.targets
    can_divide = can_divide and task.name != "regression"
    temperature = fit_temperature(logits, targets, task) if can_divide else 1.0
    before, after = (task.predict(logits / t) for t in (1.0, temperature))
    least = fit_label_sets(after, targets) if task.name == "multiclass" else None
    found = Calibration(temperature, least)
    found = found if outputs.features is None else found.with_references(outputs.features)
    errors = [calibration_error(one, targets, task) for one in (before, after)]
    losses = [float(task.image_losses(logits / t, targets).mean()) for t in (1.0, temperature)]
    unsure = found.are_unsure(after)
    return found, {
        "images": len(logits),
        "temperature": temperature,
        "loss_before": losses[0],
        "loss_after": losses[1],
        "ece_before": errors[0],
        "ece_after": errors[1],
        "unsure": None if unsure is None else float(unsure.float().mean()),
    }


def _format(facts: Mapping[str, float | None], found: Calibration, task: Task) -> str:
    images = f"{facts['images']:,} validation images"
    flags = {
        "unsure": found.least_probability is None and task.name == "multiclass",
        "unlike_training": found.farthest is None and found.references is not None,
    }
    lacking = " and ".join(name for name, is_lacking in flags.items() if is_lacking)
    few = f"; too few for the column{'s' * (' ' in lacking)} {lacking} of predictions" if lacking else ""
    if facts["ece_before"] is None:
        return f"Calibrated  by {images}{few or ', of which 95% are like the others'}"
    unsure = "" if facts["unsure"] is None else f"; unsure of {facts['unsure']:.1%}"
    loss = f"val/loss {facts['loss_before']:.4f} before, {facts['loss_after']:.4f} after it"
    return f"Calibrated  temperature {facts['temperature']:.2f}, by {images}: {loss}{unsure}{few}"


def calibration_error(probabilities: Tensor, targets: Tensor, task: Task) -> float | None:
    """The expected calibration error: how far probabilities are from the shares of images for which they hold.

    Args:
        probabilities: ``(N, K)``.
        targets: As metrics count them: classes ``(N,)``, or labels ``(N, K)``.
        task: The task; a regression has none.
    """
    if task.name == "regression":
        return None
    if task.name == "multilabel":
        found = classification.binary_calibration_error(probabilities.flatten(), targets.flatten().int(), BINS)
    else:
        found = classification.multiclass_calibration_error(probabilities, targets.long(), task.num_outputs, BINS)
    return float(found)


def _validate(trainer: Any, module: FineTuneModule) -> ValidationOutputs | None:
    """What the module gives for the validation images; None where a step of the user's has no logits."""
    recorder = OutputRecorder(max_logits=_MOST_LOGITS)
    with quiet_validation(trainer, recorder):
        trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    return recorder.gather(trainer)
