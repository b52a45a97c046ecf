"""Selection of the model that a fine-tuning hands back, compared with the linear probe that it began with."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lit_ft.console import format_table, format_value, rank_zero_print
from lit_ft.features.shared_prefix import SharedPrefix
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.rank_zero import rank_zero_warn
from lit_ft.runs import Run, find_best_callback, find_run
from lit_ft.training.evaluated import ImageLosses, quiet_validation
from lit_ft.training.handed_back import hand_back, take_best_epoch
from lit_ft.training.metrics_file import write_metrics, write_selection
from lit_ft.training.result_names import describe_images
from lit_ft.unfreezing.view import find_unfreezing

BLENDS = (0.25, 0.5, 0.75)
"""Shares of the fine-tuned weights in blends with those of the probe."""

_MEAN_LOSSES = "val/loss", "val/mse"
"""Metrics that are means over the images of what the losses are, so that these tell their error."""


@dataclass(frozen=True)
class Candidate:
    """A model that could be handed back.

    Args:
        name: What it is, for the terminal.
        share: Share of the fine-tuned weights in it; the rest are those of the probe.
        metrics: Validation metrics by name.
        losses: The loss of each validation image ``(N,)``; None where a validation step of the user's does not tell.
        num_epochs: Number of epochs after which the fine-tuned weights were taken.
        is_best_epoch: Whether it is the best epoch, whose checkpoint there is.
    """

    name: str
    share: float
    metrics: Mapping[str, float]
    losses: Tensor | None = None
    num_epochs: int = 0
    is_best_epoch: bool = False


def choose(candidates: Sequence[Candidate], monitor: str, mode: str, num_images: int) -> Candidate:
    """The candidate with the least loss, of those whose metric is within a standard error of the best.

    One with more than half of fine-tuned weights must be better than the choice among the others, by more than two
    standard errors: with few validation images it would often be taken by chance, and it is the one that may be worse
    than the probe. What counts is the metric, or the difference of the losses, image by image.

    A blend that is worse than both of what it blends, as there is a barrier between these, is left out.

    The error of a share p of N images is ``sqrt(p (1 - p) / N)``. Of metrics that are no shares it is unknown, and only
    the best is taken. One that is not defined is the worst. Among equals the first is.

    Args:
        candidates: The candidates, the cheapest first, of which the first is the probe.
        monitor: Name of the metric.
        mode: Whether its ``min`` or ``max`` is best.
        num_images: N, the number of validation images.
    """
    scores = [(1.0 if mode == "max" else -1.0) * candidate.metrics[monitor] for candidate in candidates]
    scores = [-math.inf if math.isnan(score) else score for score in scores]
    # A validation step of the user's may log no loss.
    losses = [candidate.metrics.get("val/loss", -score) for candidate, score in zip(candidates, scores, strict=True)]

    def is_better(row: int, other: int) -> bool:
        gains = _gains(candidates[row], candidates[other])
        if gains is not None:
            return _is_more_than_chance(gains)
        return "val/loss" in candidates[row].metrics and losses[row] < losses[other]

    def error(score: float) -> float:
        is_share = mode == "max" and 0 <= score <= 1 and not monitor.endswith("r2")
        return math.sqrt(score * (1 - score) / num_images) if is_share else 0.0

    def least_loss(rows: Sequence[int]) -> int:
        best = max(scores[row] for row in rows)
        near = [row for row in rows if scores[row] >= best - error(best)]
        return min(near, key=lambda row: losses[row])

    highest = max(losses[0], *(loss for one, loss in zip(candidates, losses, strict=True) if one.share in (0.0, 1.0)))
    rows = [row for row, one in enumerate(candidates) if one.share in (0.0, 1.0) or losses[row] <= highest]
    half = least_loss([row for row in rows if candidates[row].share <= 0.5])
    needed = math.inf if monitor in _MEAN_LOSSES else scores[half] + 2 * error(scores[half])
    larger = [row for row in rows if candidates[row].share > 0.5]
    better = [row for row in larger if scores[row] > needed or is_better(row, half)]
    return candidates[least_loss([half, *better])]


def _gains(candidate: Candidate, other: Candidate) -> Tensor | None:
    """How much lower the loss of a candidate is than another's, image by image ``(N,)``; None where it is unknown."""
    known = candidate.losses is not None and other.losses is not None
    return cast(Tensor, other.losses) - cast(Tensor, candidate.losses) if known else None


def _is_more_than_chance(gains: Tensor) -> bool:
    """Whether the mean of gains is above 0 by more than two standard errors."""
    error = gains.std(correction=0) / math.sqrt(max(1, len(gains) - 1))
    return bool(gains.mean() > 2 * error)


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
    """Lets the best checkpoint of a fit hold the best of the probe, blends of it and the last epoch, and single epochs.

    Blends of the weights of a linear probe and a fine-tuned model are often better than either, above all on images
    unlike those of the training (Wortsman et al. 2022, Robust fine-tuning of zero-shot models). They are tried where
    something beside the head was trained: with the weights of the last epoch, at which schedules end, while the best
    epoch of few validation images may be any. A run whose head was not solved is left as it is. Where the best epoch is
    not handed back, its checkpoint is kept as ``best_epoch.ckpt``.

    Returns:
        What was chosen; the best epoch where there is no choice.
    """
    unfreezing, callback, run = find_unfreezing(trainer), find_best_callback(trainer), find_run(trainer)
    if callback is None or run is None or trainer.fast_dev_run or not trainer.limit_val_batches:
        return Selected(1.0, trainer.current_epoch)
    # Read by the first process for all, as the others may be on machines without the folder of the run.
    read = _read(run, callback.best_model_path) if trainer.is_global_zero else None
    probe, tuned = trainer.strategy.broadcast(read)
    num_epochs = trainer.current_epoch if tuned is None else tuned["epoch"] + 1
    solved = unfreezing.solved if unfreezing else None
    if solved is None:
        _print_early_best(unfreezing, num_epochs - 1)
        if trainer.is_global_zero:
            run.probe.unlink(missing_ok=True)  # of an earlier fit
            if tuned is not None:
                write_selection(run, f"epoch {tuned['epoch']}", callback.monitor)
        return Selected(1.0, num_epochs)
    missing = f"no {run.probe}" if probe is None else ""  # the folder was moved in part
    if callback.monitor not in solved.metrics:  # a metric of the user's own
        missing = f"its {callback.monitor} is not known"
    if missing:
        rank_zero_warn(f"the linear probe is not compared: {missing}")
        return Selected(1.0, num_epochs)
    candidates = [Candidate("linear probe", 0.0, solved.metrics)]
    _take_averages(trainer, module)
    last = {name: value.clone() for name, value in module.state_dict().items()}
    if tuned is not None:
        candidates = list(_candidates(trainer, module, probe["state_dict"], last, tuned))
    elif trainer.current_epoch:
        rank_zero_warn("no epoch was validated and saved, so the linear probe is handed back, not what was fine-tuned")
    seen = candidates[0].losses  # of a limited validation fewer than there are
    num_images = trainer.datamodule.sizes()["val"] if seen is None else len(seen)
    chosen = choose(candidates, callback.monitor, callback.mode, num_images)
    callback.best_model_path = callback.best_model_path or _name_best(run, callback, chosen.metrics)
    callback.best_model_score = torch.tensor(chosen.metrics[callback.monitor])
    if trainer.is_global_zero:
        if not chosen.is_best_epoch:
            _save(trainer, callback, probe, tuned, last, chosen.share)
        metrics = {name: value for name, value in chosen.metrics.items() if name.startswith("val/")}
        facts = describe_images(trainer, "val")
        write_metrics(run, "val", {**facts, **metrics}, callback.best_model_path)
        write_selection(run, chosen.name, callback.monitor, {one.name: one.metrics for one in candidates})
    trainer.strategy.barrier("selection")
    rank_zero_print(_format(candidates, chosen, callback.monitor, module.main_metric[0]))
    return Selected(chosen.share, chosen.num_epochs)


def _take_averages(trainer: Any, module: Any) -> None:
    """Gives the module its averaged weights, as the end of a fit does; one that was resumed at its end has none."""
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            callback.on_train_end(trainer, module)


def _name_best(run: Run, callback: Any, metrics: Mapping[str, float]) -> str:
    """The path of the best checkpoint of a run without one, which the user may name by its epoch and metrics."""
    if callback.filename is None:
        return str(run.checkpoint("best"))
    values = {"epoch": 0, "step": 0, **metrics}
    return str(callback.format_checkpoint_name({name: torch.tensor(value) for name, value in values.items()}))


def _save(
    trainer: Any, callback: Any, probe: dict[str, Any], tuned: dict[str, Any] | None, last: Mapping[str, Tensor],
    share: float,
) -> None:  # fmt: skip
    """Saves the probe, a blend or the last epoch as the best checkpoint."""
    content = probe
    if tuned is not None and share:
        place = {"epoch": trainer.current_epoch - 1, "global_step": trainer.global_step}
        content = {**tuned, **place, "state_dict": blend(probe["state_dict"], last, share)}
    if callback.state_key in content.get("callbacks", {}):  # which a test of it takes the score from
        content["callbacks"][callback.state_key]["best_model_score"] = callback.best_model_score
    hand_back(trainer, callback.best_model_path, content, share)


def _print_early_best(unfreezing: Any, epoch: int) -> None:
    """Says where a run whose head was trained was best before any other stage trained."""
    starts = unfreezing.state.starts if unfreezing and unfreezing.state else []
    if len(starts) > 1 and epoch < starts[1]:
        rank_zero_print(f"Best epoch {epoch}, before the first unfreezing at epoch {starts[1]}: that has not paid")


def _read(run: Run, path: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The checkpoints of the probe and of the best epoch; None where there are none."""
    tuned = take_best_epoch(path) if path else None
    return read_checkpoint(run.probe) if run.probe.is_file() else None, tuned


def _candidates(
    trainer: Any, module: Any, probe: Mapping[str, Tensor], last: Mapping[str, Tensor], best: Mapping[str, Any]
) -> Iterator[Candidate]:
    """The probe, blends of it and the last epoch, that epoch, and the best one, each validated on the same images."""
    num_epochs = trainer.current_epoch
    epoch = f"epoch {num_epochs - 1}"
    is_best_last = best["global_step"] == trainer.global_step
    module.load_state_dict(probe)
    losses = ImageLosses(SharedPrefix(trainer, module, [probe, last, best["state_dict"]]))
    with quiet_validation(trainer, losses):

        def validate(state: Mapping[str, Tensor], name: str, share: float, *rest: Any) -> Candidate:
            module.load_state_dict(state)
            (metrics,) = trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
            return Candidate(name, share, metrics, losses.gather(trainer), *rest)

        yield validate(probe, "linear probe", 0.0)
        for share in BLENDS:
            name = f"{share:.0%} {epoch}, {1 - share:.0%} linear probe"
            yield validate(blend(probe, last, share), name, share, num_epochs)
        yield validate(last, epoch, 1.0, num_epochs, is_best_last)
        if not is_best_last:
            yield validate(best["state_dict"], f"epoch {best['epoch']}", 1.0, best["epoch"] + 1, True)
    module.load_state_dict(last)


def blend(probe: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The weights on the line from those of the probe to the fine-tuned ones, at a share of the way.

    >>> blend({"w": torch.tensor([0.0])}, {"w": torch.tensor([2.0])}, 0.25)
    {'w': tensor([0.5000])}
    """
    return {
        name: torch.lerp(value, tuned[name].to(value), share) if value.is_floating_point() else tuned[name]
        for name, value in probe.items()
    }


def _format(candidates: Sequence[Candidate], chosen: Candidate, monitor: str, main: str) -> str:
    """What was chosen, and a table of the candidates with their losses and the metric that counts."""
    metrics = [monitor, main if monitor == "val/loss" else "val/loss"]
    metrics = [name for name in dict.fromkeys(metrics) if name in candidates[0].metrics]
    rows = [(one.name, *(format_value(one.metrics[name]) for name in metrics)) for one in candidates]
    note = ", so that fine-tuning has not paid" if len(candidates) > 1 and not chosen.share else ""
    table = format_table([("candidate", *metrics), *rows], "<" + ">" * len(metrics))
    rule = monitor if monitor == "val/loss" else f"the least loss of those with nearly the best {monitor}"
    rule += " (above 50% only if clearly better)" if len(candidates) > 1 else ""
    return f"Chosen  {chosen.name}, by {rule}{note}\n{textwrap.indent(table, '  ')}\n"
