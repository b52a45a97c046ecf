"""The report of a run: one HTML file of what was run, what came of it, and where the model is wrong."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_ft.console import format_path
from lit_ft.data.pages import render_page, thumbnail
from lit_ft.evaluation.line_chart import draw_lines
from lit_ft.evaluation.run_files import Cells, read_config, read_metrics, read_rows, read_table, refuse_damaged
from lit_ft.runs import Run
from lit_ft.training.history import EpochRow, read_history

MAX_MISTAKES = 24
MAX_MATRIX = 30
MAX_PAIRS = 12
_BINS = 10

_CLASSIFIED = {"path", "class", "predicted", "probability", "loss"}
"""The columns of predictions of one class an image; a label or number may have one of these names, but not all."""


@dataclass(frozen=True)
class Mistake:
    """An image whose class was not recognised.

    Args:
        path: The image.
        caption: Its class, what was predicted, and how probable that was.
    """

    path: str
    caption: str


@dataclass(frozen=True)
class RunPage:
    """What a report shows.

    Args:
        title: The run.
        facts: What was run, by name.
        metrics: Rows of a table, the first of which is its head.
        candidates: Rows of a table of the models that could have been handed back, likewise.
        chosen: The one that was.
        charts: Pictures, by title.
        classes: Rows of a table of the classes, likewise.
        matrix: The names of the classes, and for each true class the numbers of images by predicted class; empty where
            there are too many.
        pairs: True class, predicted class and number of images of those that are confused most often.
        calibration: How far probabilities are from shares, in words.
        mistakes: The images with the largest loss.
        config: The config that gives the same run again, as a shell takes it.
        split: The split that the tables are of.
    """

    title: str
    facts: dict[str, str]
    metrics: list[list[str]]
    candidates: list[list[str]]
    chosen: str
    charts: dict[str, str]
    classes: list[list[str]]
    matrix: list[tuple[str, list[int]]]
    pairs: list[tuple[str, str, int]]
    calibration: str
    mistakes: list[Mistake]
    config: str
    split: str


def render_report(run: Run) -> str:
    """The report of a run as one HTML file, from the files in its folder.

    Raises:
        UserError: If the folder is not that of a run, or a file in it is damaged.
    """
    page = read_run(run)
    return render_page("lit_ft.evaluation", "run.html", title=page.title, page=page, picture=thumbnail)


def read_run(run: Run) -> RunPage:
    """Reads what a report shows from the folder of a run; what a run has not written is left out."""
    config, history = read_config(run), read_history(run.history)
    split = next((split for split in ("test", "val") if run.result_table("predictions", split).is_file()), "test")
    with refuse_damaged(run.metrics):
        metrics = read_metrics(run)
        table, selection = _tabulate(metrics), metrics.get("selection", {})
        candidates = _list_candidates(selection.get("candidates") or {})
    with refuse_damaged(run.history):
        shown = {"Loss": _draw_metric(history, "loss"), **_draw_scores(history), "Learning rates": _draw_rates(history)}
    with refuse_damaged(file := run.result_table("predictions", split)):
        predictions = read_table(file)
        reliability, calibration = _draw_reliability(predictions)
        mistakes = find_mistakes(predictions)
    with refuse_damaged(file := run.result_table("confusion", split)):
        matrix = [(row[0], [int(count) for count in row[1:]]) for row in read_rows(file)[1:]]
        pairs = find_pairs(matrix)
    with refuse_damaged(file := run.result_table("per_class", split)):
        classes = read_rows(file)[1:]
    charts = {title: chart for title, chart in {**shown, "Reliability": reliability}.items() if chart}
    return RunPage(
        title=f"{run.folder.parent.name}/{run.folder.name}",
        facts=_list_facts(config, history),
        metrics=table,
        candidates=candidates,
        chosen=str(selection.get("chosen", "")),
        charts=charts,
        classes=[["class", "images", "predicted", "precision", "recall", "F1"], *classes] if classes else [],
        matrix=matrix if len(matrix) <= MAX_MATRIX else [],
        pairs=pairs,
        calibration=calibration,
        mistakes=mistakes,
        config=shlex.quote(str(format_path(run.config))),
        split=split,
    )


def _list_facts(config: Mapping[str, Any], history: Sequence[EpochRow]) -> dict[str, str]:
    """What was run, as far as the config says."""
    model, data = (_options(config.get(key)) for key in ("model", "data"))
    unfreeze, optimizer = (config.get(key) or {} for key in ("unfreeze", "optimizer"))
    facts = {
        "backbone": model.get("backbone"),
        "weights": None if (weights := model.get("weights")) is None else Path(str(weights)).name,
        "data": data.get("root") or data.get("table") or _name(config.get("data")),
        "strategy": _options(unfreeze).get("strategy"),
        "optimizer": _name(optimizer) or "AdamW",
        "learning rate": model.get("lr"),
        "epochs": len(history),
        "seed": config.get("seed_everything"),
    }
    return {key: _plain(value) for key, value in facts.items() if value is not None}


def _options(section: Any) -> dict[str, Any]:
    found = section.get("init_args", section) if isinstance(section, dict) else {}
    return found if isinstance(found, dict) else {}


def _name(section: Any) -> str | None:
    path = section.get("class_path") if isinstance(section, dict) else section
    return path.rpartition(".")[2] if isinstance(path, str) else None


def _plain(value: Any) -> str:
    return str(value.get("class_path", value)) if isinstance(value, dict) else str(value)


def _tabulate(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row for each metric, and a column for each split, with intervals where there are some."""
    splits = [split for split in ("val", "test") if split in metrics]
    names = {name.partition("/")[2] for split in splits for name in metrics[split] if name.startswith(f"{split}/")}
    rows = []
    for name in sorted(names):
        cells = []
        for split in splits:
            value = metrics[split].get(f"{split}/{name}")
            ends = (metrics[split].get("intervals") or {}).get(f"{split}/{name}")
            cell = "" if not isinstance(value, (int, float)) else f"{value:.4f}"
            cells.append(cell + (f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends and cell else ""))
        rows.append([name, *cells])
    return [["metric", *splits], *rows] if rows else []


def _list_candidates(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    names = sorted({name for metrics in found.values() for name in metrics})
    rows = [
        [title, *("" if (value := metrics.get(name)) is None else f"{value:.4f}" for name in names)]
        for title, metrics in found.items()
    ]
    return [["candidate", *names], *rows] if rows else []


def _draw_metric(history: Sequence[EpochRow], name: str) -> str:
    series = {f"{split}/{name}": _points(history, f"{split}/{name}") for split in ("train", "val")}
    return draw_lines(series, "epoch", find_unfreezings(history))


def _draw_scores(history: Sequence[EpochRow]) -> dict[str, str]:
    """A chart of the metrics of validation that are shares, and one of each other."""
    names = [name for name in (history[-1] if history else {}) if name.startswith("val/") and name != "val/loss"]
    shares = [name for name in names if name.partition("/")[2] in ("acc", "f1", "precision", "recall")]
    charts = {
        "Validation": draw_lines({name: _points(history, name) for name in shares}, "epoch", find_unfreezings(history))
    }
    others = [name for name in names if name not in shares and name != "val/acc_top5"]
    return charts | {name: draw_lines({name: _points(history, name)}, "epoch") for name in others}


def _draw_rates(history: Sequence[EpochRow]) -> str:
    stages = [name for name in (history[0] if history else {}) if name.startswith("lr/")]
    return draw_lines({name[3:]: _points(history, name) for name in stages}, "epoch", log=True)


def _points(history: Sequence[EpochRow], name: str) -> list[tuple[float, float]]:
    return [(float(row["epoch"] or 0), float(value)) for row in history if (value := row.get(name)) is not None]


def find_unfreezings(history: Sequence[EpochRow]) -> dict[float, str]:
    """The epochs in which stages began to train that were frozen before, and their names."""
    found: dict[float, str] = {}
    for before, row in pairwise(history):
        stages = [name[3:] for name in row if name.startswith("lr/") and row[name] and not before.get(name)]
        if stages:
            found[float(row["epoch"] or 0)] = f"unfrozen: {', '.join(stages)}"
    return found


def _draw_reliability(predictions: Sequence[Cells]) -> tuple[str, str]:
    """The share of images that are right by their probability, and the expected calibration error in words.

    The error is the mean distance of both, over bins of equal width weighted by their images (Guo et al. 2017, On
    Calibration of Modern Neural Networks, eq. 3).
    """
    # A model whose weights are not finite has no probabilities.
    rows = [row for row in predictions if row.keys() == _CLASSIFIED and math.isfinite(float(row["probability"]))]
    if not rows:
        return "", ""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row in rows:
        probability = float(row["probability"])
        bins.setdefault(min(_BINS - 1, int(probability * _BINS)), []).append(
            (probability, row["class"] == row["predicted"])
        )
    points, error = [], 0.0
    for _, members in sorted(bins.items()):
        mean = sum(probability for probability, _ in members) / len(members)
        share = sum(right for _, right in members) / len(members)
        points.append((mean, share))
        error += abs(mean - share) * len(members) / len(rows)
    chart = draw_lines(
        {"share that is right": points, "ideal": [(0.0, 0.0), (1.0, 1.0)]}, "probability of the prediction"
    )
    return chart, f"Expected calibration error {error:.1%} of {len(rows):,} images in {_BINS} bins of probability."


def find_pairs(matrix: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, str, int]]:
    """The classes that are confused most often: true, predicted, and number of images.

    >>> find_pairs([("ant", [8, 2]), ("bee", [3, 9])])
    [('bee', 'ant', 3), ('ant', 'bee', 2)]
    """
    names = [name for name, _ in matrix]
    pairs = [
        (true, names[k], count)
        for row, (true, counts) in enumerate(matrix)
        for k, count in enumerate(counts)
        if count and k != row
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:MAX_PAIRS]


def find_mistakes(predictions: Sequence[Cells]) -> list[Mistake]:
    """The images with the largest loss, of several classes those that are not recognised."""
    wrong = [row for row in predictions if row.keys() != _CLASSIFIED or row["class"] != row["predicted"]]
    worst = sorted(wrong, key=_sort_by_loss, reverse=True)[:MAX_MISTAKES]
    return [Mistake(row["path"], _caption(row)) for row in worst]


def _sort_by_loss(row: Cells) -> float:
    loss = float(row["loss"])
    return math.inf if math.isnan(loss) else loss


def _caption(row: Cells) -> str:
    if row.keys() != _CLASSIFIED:
        return f"loss {float(row['loss']):.3g}"
    return f"{row['class']}, predicted {row['predicted']} ({float(row['probability']):.0%})"
