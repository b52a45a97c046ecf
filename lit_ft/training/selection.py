"""Selection of the model that a fine-tuning hands back: never worse than the linear probe that it began with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    the best is taken. Among equals the first is.

    Args:
        candidates: The candidates, the cheapest first.
        monitor: Name of the metric.
        mode: Whether its ``min`` or ``max`` is best.
        num_images: N, the number of validation images.
    """
    sign = 1.0 if mode == "max" else -1.0
    best = max(sign * candidate.metrics[monitor] for candidate in candidates)
    error = math.sqrt(best * (1 - best) / num_images) if mode == "max" and 0 <= best <= 1 else 0.0
    near = [candidate for candidate in candidates if sign * candidate.metrics[monitor] >= best - error]
    return min(near, key=lambda candidate: candidate.metrics["val/loss"])


def select_best(trainer: Any, module: Any) -> None:
    """Lets the best checkpoint of a fit hold the best of the probe, the best epoch, and blends of both.

    Blends of the weights of a linear probe and a fine-tuned model are often better than either, above all on images
    unlike those of the training (Wortsman et al. 2022, Robust fine-tuning of zero-shot models). They are tried where
    something beside the head was trained. A run whose head was not solved is left as it is.
    """
    unfreezing, callback, run = find_unfreezing(trainer), find_best_callback(trainer), find_run(trainer)
    solved = unfreezing.solved if unfreezing else None
    if solved is None or callback is None or run is None or trainer.fast_dev_run:
        return
    # Read by the first process for all, as the others may be on machines without the folder of the run.
    read = _read(run, callback) if trainer.is_global_zero else None
    probe, tuned, row = trainer.strategy.broadcast(read)
    missing = f"no {run.checkpoint('probe')}" if probe is None else ""  # the folder was moved in part
    if callback.monitor not in solved.metrics:  # a metric of the user's own
        missing = f"its {callback.monitor} is not known"
    if missing:
        rank_zero_warn(f"the linear probe is not compared: {missing}")
        return
    candidates = [Candidate("linear probe", 0.0, solved.metrics)]
    if tuned is not None:
        candidates += _blends(trainer, module, probe["state_dict"], tuned["state_dict"])
        candidates.append(Candidate(f"epoch {row['epoch']}", 1.0, row))
    chosen = choose(candidates, callback.monitor, callback.mode, trainer.datamodule.sizes()["val"])
    callback.best_model_path = callback.best_model_path or str(run.checkpoint(callback.filename or "best"))
    callback.best_model_score = torch.tensor(chosen.metrics[callback.monitor])
    if trainer.is_global_zero:
        if chosen.share < 1:
            state = blend(probe["state_dict"], tuned["state_dict"], chosen.share) if chosen.share else {}
            content = {**tuned, "state_dict": state} if state else probe
            trainer.strategy.checkpoint_io.save_checkpoint(content, callback.best_model_path)
        metrics = {name: value for name, value in chosen.metrics.items() if name.startswith("val/")}
        write_metrics(run, "val", metrics, callback.best_model_path)
    trainer.strategy.barrier("selection")
    rank_zero_print(_format(candidates, chosen, callback.monitor))


def _read(run: Run, callback: Any) -> tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, float]]:
    """The checkpoints of the probe and of the best epoch, and that epoch's metrics; None where there are none."""
    if not run.checkpoint("probe").is_file():
        return None, None, {}
    row = find_best_row(read_history(run.history), callback.monitor, callback.best_model_score) or {}
    metrics = {name: value for name, value in row.items() if value is not None}
    best = callback.best_model_path
    has_best = best and {"val/loss", callback.monitor} <= metrics.keys()
    return read_checkpoint(run.checkpoint("probe")), read_checkpoint(best) if has_best else None, metrics


def _blends(trainer: Any, module: Any, probe: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Iterator[Candidate]:
    """Validates the blends, and then gives the module its weights back."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with _quiet(trainer):
        for share in BLENDS:
            module.load_state_dict(blend(probe, tuned, share))
            (metrics,) = trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
            yield Candidate(f"{share:.0%} fine-tuned, {1 - share:.0%} probe", share, metrics)
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
