"""Selection of the model that a fine-tuning hands back: never worse than the linear probe that it began with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_ft.console import format_value, rank_zero_print
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.runs import Run, find_best_callback, find_run
from lit_ft.training.history import find_best_row, read_history, write_metrics
from lit_ft.unfreezing.view import find_unfreezing

BLENDS = (0.25, 0.5, 0.75)
"""Shares of the fine-tuned weights in blends with those of the probe."""

_SELECTED = "share_fine_tuned"
"""Key of a checkpoint that is no epoch's: the share of the fine-tuned weights in it."""


@dataclass(frozen=True)
class Candidate:
    """A model that could be handed back.

    Args:
        name: What it is, for the terminal.
        share: Share of the fine-tuned weights in it; the rest are those of the probe.
        metrics: Validation metrics by name.
    """

    name: str
    share: float
    metrics: Mapping[str, float]


def choose(candidates: Sequence[Candidate], monitor: str, mode: str, num_images: int) -> Candidate:
    """The candidate with the least loss, of those whose metric is within a standard error of the best.

    The error of a share p of N images is ``sqrt(p (1 - p) / N)``; of metrics that are no shares it is unknown, and only
    the best is taken. One that is not defined is the worst. Among equals the first is.

    Args:
        candidates: The candidates, the cheapest first.
        monitor: Name of the metric.
        mode: Whether its ``min`` or ``max`` is best.
        num_images: N, the number of validation images.
    """
    sign = 1.0 if mode == "max" else -1.0
    scores = [sign * candidate.metrics[monitor] for candidate in candidates]
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    best = max(scores)
    is_share = mode == "max" and 0 <= best <= 1 and not monitor.endswith("r2")
    error = math.sqrt(best * (1 - best) / num_images) if is_share else 0.0
    near = [candidate for candidate, score in zip(candidates, scores, strict=True) if score >= best - error]
    return min(near, key=lambda candidate: candidate.metrics["val/loss"])


@dataclass(frozen=True)
class Selected:
    """What a fit hands back.

    Args:
        share: Share of the fine-tuned weights in it; the rest are those of the probe.
        num_epochs: Number of epochs after which the fine-tuned weights were taken.
    """

    share: float
    num_epochs: int


def select_best(trainer: Any, module: Any) -> Selected:
    """Lets the best checkpoint of a fit hold the best of the probe, the best epoch, and blends of both.

    Blends of the weights of a linear probe and a fine-tuned model are often better than either, above all on images
    unlike those of the training (Wortsman et al. 2022, Robust fine-tuning of zero-shot models). They are tried where
    something beside the head was trained. A run whose head was not solved is left as it is. Where the best epoch is not
    handed back, its checkpoint is kept as ``best_epoch.ckpt``.

    Returns:
        What was chosen; the best epoch where there is no choice.
    """
    unfreezing, callback, run = find_unfreezing(trainer), find_best_callback(trainer), find_run(trainer)
    if callback is None or run is None or trainer.fast_dev_run or not trainer.limit_val_batches:
        return Selected(1.0, trainer.current_epoch)
    # Read by the first process for all, as the others may be on machines without the folder of the run.
    read = _read(run, callback) if trainer.is_global_zero else None
    probe, tuned, row = trainer.strategy.broadcast(read)
    num_epochs = trainer.current_epoch if tuned is None else tuned["epoch"] + 1
    solved = unfreezing.solved if unfreezing else None
    if solved is None:
        _print_early_best(unfreezing, num_epochs - 1)
        return Selected(1.0, num_epochs)
    missing = f"no {run.probe}" if probe is None else ""  # the folder was moved in part
    if callback.monitor not in solved.metrics:  # a metric of the user's own
        missing = f"its {callback.monitor} is not known"
    if missing:
        rank_zero_warn(f"the linear probe is not compared: {missing}")
        return Selected(1.0, num_epochs)
    # Those that are known are of all validation images, as the fit must have seen them.
    limit = trainer.limit_val_batches
    known = {0.0: solved.metrics} if isinstance(limit, float) and limit == 1.0 else {}  # the whole number 1 is a batch
    if {"val/loss", callback.monitor} <= row.keys():  # else the best was within an epoch
        known[1.0] = row
    states = probe["state_dict"], None if tuned is None else tuned["state_dict"]
    candidates = list(_candidates(trainer, module, states, known, num_epochs))
    chosen = choose(candidates, callback.monitor, callback.mode, trainer.datamodule.sizes()["val"])
    callback.best_model_path = callback.best_model_path or str(run.checkpoint(callback.filename or "best"))
    callback.best_model_score = torch.tensor(chosen.metrics[callback.monitor])
    if trainer.is_global_zero:
        if chosen.share < 1:
            _save(trainer, callback, probe, tuned, chosen.share)
        metrics = {name: value for name, value in chosen.metrics.items() if name.startswith("val/")}
        write_metrics(run, "val", metrics, callback.best_model_path)
    trainer.strategy.barrier("selection")
    late = trainer.current_epoch - num_epochs
    note = f"; the last {late} of {trainer.current_epoch} epochs brought no better" if tuned and late > 0 else ""
    rank_zero_print(_format(candidates, chosen, callback.monitor) + note)
    return Selected(chosen.share, num_epochs)


def _save(trainer: Any, callback: Any, probe: dict[str, Any], tuned: dict[str, Any] | None, share: float) -> None:
    """Saves the probe or a blend as the best checkpoint, and keeps that of the best epoch beside it."""
    content = probe
    if tuned is not None and share:
        content = {**tuned, "state_dict": blend(probe["state_dict"], tuned["state_dict"], share)}
    if tuned is not None and not is_selected(read_checkpoint(callback.best_model_path)):
        Path(callback.best_model_path).replace(_best_epoch(callback))
    if callback.state_key in content.get("callbacks", {}):  # which a test of it takes the score from
        content["callbacks"][callback.state_key]["best_model_score"] = callback.best_model_score
    trainer.strategy.checkpoint_io.save_checkpoint(as_selected(content, share), callback.best_model_path)


def as_selected(checkpoint: Mapping[str, Any], share: float) -> dict[str, Any]:
    """A checkpoint that says that it is no epoch's, and the share of the fine-tuned weights in it."""
    return {**checkpoint, _SELECTED: share}


def is_selected(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is no epoch's, but what a selection or a refit has made."""
    return _SELECTED in checkpoint


def _print_early_best(unfreezing: Any, epoch: int) -> None:
    """Says where a run whose head was trained was best before any other stage trained."""
    starts = unfreezing.state.starts if unfreezing and unfreezing.state else []
    if len(starts) > 1 and epoch < starts[1]:
        rank_zero_print(f"Best epoch {epoch}, before the first unfreezing at epoch {starts[1]}: that has not paid")


def _best_epoch(callback: Any) -> Path:
    """Where the checkpoint of the best epoch is, if another one is handed back."""
    return Path(callback.best_model_path).with_name("best_epoch.ckpt")


def _read(run: Run, callback: Any) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, float]]:
    """The checkpoints of the probe and of the best epoch, and that epoch's metrics; None where there are none."""
    row = find_best_row(read_history(run.history), callback.monitor, callback.best_model_score) or {}
    metrics = {name: value for name, value in row.items() if value is not None}
    tuned, probe = None, run.probe
    if callback.best_model_path:
        tuned = read_checkpoint(callback.best_model_path)
        if is_selected(tuned):  # of a run that had ended, and was resumed
            tuned = read_checkpoint(_best_epoch(callback)) if _best_epoch(callback).is_file() else None
    return read_checkpoint(probe) if probe.is_file() else None, tuned, metrics


def _candidates(
    trainer: Any,
    module: Any,
    states: tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None],
    known: Mapping[float, Mapping[str, float]],
    num_epochs: int,
) -> Iterator[Candidate]:
    """The probe, the blends and the fine-tuned weights, cheapest first; validates those whose metrics are not known."""
    probe, tuned = states
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with _quiet(trainer):
        for share in (0.0, *BLENDS, 1.0) if tuned is not None else (0.0,):
            if (metrics := known.get(share)) is None:
                module.load_state_dict(blend(probe, tuned or probe, share))
                (metrics,) = trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
            ends = {0.0: "linear probe", 1.0: f"epoch {num_epochs - 1}"}
            yield Candidate(ends.get(share, f"{share:.0%} fine-tuned, {1 - share:.0%} probe"), share, metrics)
    module.load_state_dict(before)


def blend(probe: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weights on the line from those of the probe to the fine-tuned ones, at a share of the way.

    >>> blend({"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}, 0.25)
    {'w': tensor([0.5000])}
    """
    return {
        name: torch.lerp(value, tuned[name].to(value), share) if value.is_floating_point() else tuned[name]
        for name, value in probe.items()
    }


@contextmanager
def _quiet(trainer: Any) -> Iterator[None]:
    """A trainer whose callbacks neither write nor draw a validation that is no part of the run."""
    before = trainer.callbacks
    trainer.callbacks = [trainer.progress_bar_callback] if trainer.progress_bar_callback else []
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers = before, loggers


def _format(candidates: Sequence[Candidate], chosen: Candidate, monitor: str) -> str:
    scores = ", ".join(
        f"{one.name} {format_value(one.metrics[monitor])} (loss {format_value(one.metrics['val/loss'])})"
        for one in candidates
    )
    return f"Chosen  {chosen.name}, of {monitor}: {scores}"
