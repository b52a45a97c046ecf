"""Facts that the report of a run states: its options, metrics, models, weights, time and drift."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_ft.backbones.build import source_of
from lit_ft.console import format_duration, format_value
from lit_ft.errors import UserError
from lit_ft.evaluation.comparison import flatten
from lit_ft.evaluation.drift import relative_drift
from lit_ft.model.checkpoint import read_checkpoint
from lit_ft.runs import Run
from lit_ft.tasks.monitored import MAIN_METRIC
from lit_ft.training.history import EpochRow

PROBE = "linear probe"

_SHARES = ("acc", "acc_top5", "precision", "recall", "f1")
_NAMES = {"acc": "accuracy", "acc_top5": "top-5 accuracy", "f1": "F1", "r2": "R2", "mse": "MSE", "mae": "MAE"}
_PARTS = {
    "start": "before the first epoch: reading the data, features and solved head",
    "data": "waiting for batches, and caching of features",
    "training": "training steps",
    "validation": "validation in the epochs",
    "choice": "selection and calibration",
    "refit": "refit",
    "test": "test",
}
_NO_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked")
Metrics = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Tile:
    """A figure at the head of a report: its name, the figure, and what it is of."""

    name: str
    value: str
    note: str


def format_metric(name: str, value: Any) -> str:
    """A metric for a person: a share in percent; nothing where it is not known."""
    if not isinstance(value, (int, float)):
        return ""
    return f"{value:.1%}" if name in _SHARES else format_value(value)


def _format_interval(name: str, ends: Sequence[Any] | None) -> str:
    return " to ".join(format_metric(name, float(end)) for end in ends[:2]) if ends else ""


def title_of(metric: str) -> str:
    """The name of a metric for a person."""
    return _NAMES.get(metric, metric)


def list_tiles(metrics: Metrics, task: str, num_images: Mapping[str, int]) -> list[Tile]:
    """The metric that counts and the loss of the test, or of the validation, with those of the linear probe beside."""
    main = MAIN_METRIC.get(task, MAIN_METRIC["multiclass"])[0].partition("/")[2]
    probe = _probe_of(metrics)
    tiles = [
        _make_tile(metrics, "test", main, num_images),
        _make_tile(metrics, "val", main, num_images),
        Tile(f"{title_of(main)}, val", format_metric(main, probe.get(f"val/{main}")), "of the linear probe"),
        _make_tile(metrics, "test", "loss", num_images),
        _make_tile(metrics, "val", "loss", num_images),
    ]
    return [tile for tile in tiles if tile.value]


def _make_tile(metrics: Metrics, split: str, name: str, num_images: Mapping[str, int]) -> Tile:
    own = metrics.get(split, {})
    ends = (own.get("intervals") or {}).get(f"{split}/{name}")
    interval = _format_interval(name, ends)
    count = f"{num_images[split]:,} images" if split in num_images else ""
    note = ", ".join(part for part in (interval, count) if part)
    return Tile(f"{title_of(name)}, {split}", format_metric(name, own.get(f"{split}/{name}")), note)


def _probe_of(metrics: Metrics) -> Mapping[str, Any]:
    candidates: Mapping[str, Any] = metrics.get("selection", {}).get("candidates") or {}
    found: Mapping[str, Any] = candidates.get(PROBE) or {}
    return found


def tabulate_metrics(metrics: Metrics) -> list[list[str]]:
    """A row for each metric, and a column for each split, with intervals, and for the linear probe."""
    splits, probe = [split for split in ("val", "test") if split in metrics], _probe_of(metrics)
    names = {name.partition("/")[2] for split in splits for name in metrics[split] if name.startswith(f"{split}/")}
    rows = []
    for name in sorted(names):
        cells = [format_metric(name, probe.get(f"val/{name}"))] if probe else []
        for split in splits:
            text = format_metric(name, metrics[split].get(f"{split}/{name}"))
            ends = (metrics[split].get("intervals") or {}).get(f"{split}/{name}")
            cells.append(f"{text} ({_format_interval(name, ends)})" if ends and text else text)
        rows.append([title_of(name), *cells])
    return [["metric", *(["linear probe, val"] if probe else []), *splits], *rows] if rows else []


def list_candidates(metrics: Metrics) -> list[list[str]]:
    """A row for each model that could have been handed back, and its validation metrics."""
    found: Mapping[str, Mapping[str, Any]] = metrics.get("selection", {}).get("candidates") or {}
    names = sorted({name for candidate in found.values() for name in candidate if name.startswith("val/")})
    head = ["candidate", *(title_of(name[4:]) for name in names)]
    rows = [[title, *(format_metric(name[4:], own.get(name)) for name in names)] for title, own in found.items()]
    return [head, *rows] if rows else []


def describe_choice(metrics: Metrics) -> str:
    """Which model was handed back, by what, and what was done with it then."""
    selection, refit = metrics.get("selection", {}), metrics.get("refit")
    if "chosen" not in selection:
        return ""
    by = f", chosen on the {selection['split']} images by {selection['monitor']}" if "monitor" in selection else ""
    again = ""
    if refit:
        epochs = f", {refit['epochs']} epochs" if refit["epochs"] else ""
        again = f" It was then fitted again on {refit['images']:,} images of train and val{epochs}."
        names = {"val": "validation", "test": "test"}
        before = [name for split, name in names.items() if (metrics.get(split) or {}).get("is_before_refit")]
        again += f" The {' and '.join(before) or 'validation'} figures are those of the model before that."
    return f"Handed back: {selection['chosen']}{by}.{again}"


def list_facts(config: Mapping[str, Any], history: Sequence[EpochRow], facts: Mapping[str, Any]) -> dict[str, str]:
    """What was run, as far as the config and the run say."""
    options = dict(flatten(config))
    weights = options.get("model.weights", "DEFAULT" if "model.backbone" in options else None)
    optimizer = options.get("optimizer") or "AdamW"
    fold, folds = options.get("data.fold"), options.get("data.folds")
    versions, images = (facts.get(name) or {} for name in ("versions", "images"))
    found = {
        "backbone": options.get("model.backbone"),
        "weights": describe_weights(options.get("model.backbone"), weights),
        "data": options.get("data.root") or options.get("data.table") or _last(options.get("data")),
        "images": ", ".join(f"{split} {size:,}" for split, size in images.items()) or None,
        "strategy": options.get("unfreeze.strategy"),
        "optimizer": f"{_last(optimizer)}, learning rate {options.get('model.lr')}",
        "fold": fold and f"{fold} of {folds}",
        "folds": folds if fold is None else None,
        "epochs": None if folds and fold is None else len(history),  # of a cross-validation each fold has some
        "seed": options.get("seed_everything"),
        "device": facts.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _last(path: Any) -> str | None:
    return path.rpartition(".")[2] if isinstance(path, str) else None


def describe_weights(backbone: Any, weights: Any) -> str | None:
    """Where the weights of a backbone come from, and their licence, as far as the library that has them knows."""
    if weights is None or not isinstance(backbone, str):
        return None if weights is None else str(weights)
    try:
        found = source_of(backbone).tags(backbone).get(str(weights))
    except UserError:  # of a library that is not on this machine
        found = None
    if found is None:
        return Path(str(weights)).name
    if found.url is None:
        return f"{found.title}, which comes with lit_ft"
    parts = [found.title, found.url, f"licence {found.licence or 'not stated'}", found.about or ""]
    return "; ".join(part for part in parts if part)


def tabulate_seconds(facts: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """What the time went to: each part, its time, and its share of all."""
    seconds: Mapping[str, float] = facts.get("seconds") or {}
    total = sum(seconds.values()) or 1.0
    rows = [(_PARTS.get(part, part), format_duration(value), value / total) for part, value in seconds.items()]
    return [*rows, ("all", format_duration(total), 1.0)] if rows else []


def measure_drift(run: Run) -> dict[str, float]:
    """How far each stage is from where fine-tuning began: the norm of the change of its weights by that of the weights.

    It began with the weights of the linear probe, and ended with those that were handed back; without these there is
    nothing. The temperature of the calibration, which changes no class, is taken out of the head.

    Raises:
        UserError: If a checkpoint is damaged.
    """
    if not (run.probe.is_file() and run.checkpoint("best").is_file()):
        return {}
    before, after = _read(run.probe)["state_dict"], _read(run.checkpoint("best"))
    after, temperature = after["state_dict"], (after.get("calibration") or {}).get("temperature", 1.0)
    last = next(reversed(before)).rpartition(".")[0]  # the layer of the head that has the temperature in it
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, value in before.items():
        other = after.get(name)
        if not value.is_floating_point() or name.endswith(_NO_WEIGHTS) or other is None or other.shape != value.shape:
            continue
        stage = name.removeprefix("backbone.stages.").partition(".")[0]
        given = other * temperature if name.rpartition(".")[0] == last else other
        pairs.setdefault(stage, []).append((value, given))
    drifts = {stage: relative_drift(own) for stage, own in pairs.items()}
    # What is left of a temperature that was taken out is rounding.
    return {stage: round(drift, 6) for stage, drift in drifts.items() if not math.isnan(drift)}


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint with weights."""
    try:
        checkpoint = read_checkpoint(path)
        if not isinstance(checkpoint["state_dict"], dict) or not checkpoint["state_dict"]:
            raise ValueError("no weights")
        return checkpoint
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError) as error:
        raise UserError(f"{path}: is damaged; remove it, or run again") from error
