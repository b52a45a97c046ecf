"""The report of a run: one HTML file of what was run, what came of it, and where the model is wrong."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_ft.console import format_path
from lit_ft.data.pages import render_page
from lit_ft.evaluation.fold_scores import CAVEAT, FoldScores
from lit_ft.evaluation.line_chart import draw_matrix
from lit_ft.evaluation.predicted_images import PredictedImages, parse_predictions
from lit_ft.evaluation.report_charts import (
    draw_metric,
    draw_plan,
    draw_predictions,
    draw_rates,
    draw_reliability,
    draw_scores,
    find_pairs,
    find_unfreezings,
)
from lit_ft.evaluation.report_facts import (
    Tile,
    describe_choice,
    format_metric,
    list_candidates,
    list_facts,
    list_tiles,
    measure_drift,
    tabulate_metrics,
    tabulate_seconds,
)
from lit_ft.evaluation.report_heat import explain_mistakes
from lit_ft.evaluation.report_images import (
    ShownImage,
    draw_sample,
    embed_picture,
    find_label_suspects,
    find_mistakes,
    find_pictures,
    list_suspects,
    show,
)
from lit_ft.evaluation.run_files import (
    is_tested_on_validation,
    read_config,
    read_metrics,
    read_rows,
    read_table,
    refuse_damaged,
)
from lit_ft.runs import Run
from lit_ft.training.history import EpochRow, read_history

MAX_CELLS = 20
"""Classes of a confusion matrix whose cells have numbers."""

MAX_MATRIX = 100
"""Classes of a confusion matrix."""


@dataclass(frozen=True)
class RunPage:
    """What a report shows; what a run has not written is empty.

    Args:
        title: The run.
        tiles: The figures at its head.
        facts: What was run, by name.
        metrics: Rows of a table, the first of which is its head.
        folds: Likewise of the folds of a cross-validation.
        choice: Which model was handed back, in words.
        candidates: Rows of a table of the models that could have been, likewise.
        plan: A picture of the epochs in which each stage trained.
        charts: Pictures, by title.
        calibration: How far probabilities are from shares, in words.
        training_images: A picture of images that it was trained on, a JPEG in base64.
        drift: How far each stage moved.
        seconds: What the time went to: a part, its time, and its share.
        split: The split that the rest is of.
        matrix: The names of the classes, and for each true class the numbers of images by predicted class.
        matrix_picture: The same for many classes, of which `matrix` is then empty.
        pairs: True class, predicted class and number of images of those that are confused most often.
        classes: Rows of a table of the classes.
        suspects: Images whose label is perhaps wrong, of all splits.
        mistakes: The other images with the largest loss.
        samples: Some images.
        note: What the splits are worth.
        has_unfreezings: Whether charts have marks where stages were unfrozen.
        config: The config that gives the same run again, as a shell takes it.
    """

    title: str
    tiles: list[Tile]
    facts: dict[str, str]
    metrics: list[list[str]]
    folds: list[list[str]]
    choice: str
    candidates: list[list[str]]
    plan: str
    charts: dict[str, str]
    calibration: str
    training_images: str
    drift: dict[str, float]
    seconds: list[tuple[str, str, float]]
    split: str
    matrix: list[tuple[str, list[int]]]
    matrix_picture: str
    pairs: list[tuple[str, str, int]]
    classes: list[list[str]]
    suspects: list[ShownImage]
    mistakes: list[ShownImage]
    samples: list[ShownImage]
    note: str
    has_unfreezings: bool
    config: str


def render_report(run: Run, data: Any = None) -> str:
    """The report of a run as one HTML file, from the files in its folder.

    Args:
        run: The run.
        data: Its data module, for thumbnails of images that are in no file.

    Raises:
        UserError: If the folder is not that of a run, or a file in it is damaged.
    """
    page = read_run(run)
    shown = {
        "page": page,
        "caveat": CAVEAT,
        "picture": find_pictures(data),
        "heat": explain_mistakes(run, data, page.mistakes),
    }
    return render_page("lit_ft.evaluation", "run.html", title=page.title, **shown)


def read_run(run: Run) -> RunPage:
    """Reads what a report shows from the folder of a run."""
    config, history = read_config(run), read_history(run.history)
    images = {split: found for split in ("test", "val") if (found := _read_images(run, split)) is not None}
    split, shown = next(iter(images.items()), ("test", None))
    with refuse_damaged(run.metrics):
        metrics = read_metrics(run)
        sizes = {split: len(found) for split, found in images.items()}
        tiles = list_tiles(metrics, shown.task if shown else "multiclass", sizes)
        table, candidates, choice = tabulate_metrics(metrics), list_candidates(metrics), describe_choice(metrics)
        scores = FoldScores.read(metrics)
        facts = list_facts(config, history, metrics.get("run", {}))
        seconds = tabulate_seconds(metrics.get("run", {}))
        calibrated = _describe_temperature(metrics.get("calibration", {}))
    matrix, pairs, picture = _read_matrix(run, split)
    with refuse_damaged(run.history):
        charts, plan = _draw_epochs(history), draw_plan(history)
    with refuse_damaged(run.result_table("predictions", split)):
        more, calibration = _draw_predicted(shown, is_binary=len(matrix) == 2) if shown else ({}, "")
        suspects = find_label_suspects(shown) if shown else []
        mistakes = show(shown, find_mistakes(shown, suspects), split) if shown else []
        samples = show(shown, draw_sample(shown), split) if shown else []
    with refuse_damaged(file := run.result_table("per_class", split)):
        classes = read_rows(file)[1:]
    return RunPage(
        title=f"{run.folder.resolve().parent.name}/{run.folder.resolve().name}",
        tiles=tiles,
        facts=facts,
        metrics=table,
        folds=scores.rows(format_metric) if scores else [],
        choice=choice,
        candidates=candidates,
        plan=plan,
        charts={title: chart for title, chart in {**charts, **more}.items() if chart},
        calibration=" ".join(part for part in (calibration, calibrated) if part),
        training_images=embed_picture(run.train_images),
        drift=measure_drift(run),
        seconds=seconds,
        split=split,
        matrix=matrix if len(matrix) <= MAX_CELLS else [],
        matrix_picture=picture,
        pairs=pairs,
        classes=[["class", "images", "predicted", "precision", "recall", "F1"], *classes] if classes else [],
        suspects=list_suspects(images),
        mistakes=mistakes,
        samples=samples,
        note=_describe_splits(is_tested_on_validation(run, metrics)),
        has_unfreezings=bool(find_unfreezings(history)),
        config=shlex.quote(str(format_path(run.config))),
    )


def _read_matrix(run: Run, split: str) -> tuple[list[tuple[str, list[int]]], list[tuple[str, str, int]], str]:
    """The classes with the numbers of images by predicted class, those most often confused, and a picture of many."""
    with refuse_damaged(file := run.result_table("confusion", split)):
        matrix = [(row[0], [int(count) for count in row[1:]]) for row in read_rows(file)[1:]]
        is_large = MAX_CELLS < len(matrix) <= MAX_MATRIX
        picture = draw_matrix([name for name, _ in matrix], [counts for _, counts in matrix]) if is_large else ""
        return matrix, find_pairs(matrix), picture


def _draw_epochs(history: Sequence[EpochRow]) -> dict[str, str]:
    """Charts of what was measured in the epochs, by title."""
    return {"Loss": draw_metric(history, "loss"), **draw_scores(history), "Learning rates": draw_rates(history)}


def _draw_predicted(images: PredictedImages, is_binary: bool) -> tuple[dict[str, str], str]:
    """Charts of what predictions are worth, by title, and how far probabilities are from shares, in words."""
    charts, calibration = {}, ""
    if images.task != "regression":
        charts["Reliability"], calibration = draw_reliability(images)
    return charts | draw_predictions(images, is_binary), calibration


def _read_images(run: Run, split: Any) -> PredictedImages | None:
    with refuse_damaged(file := run.result_table("predictions", split)):
        return parse_predictions(read_table(file))


def _describe_splits(are_same: bool) -> str:
    """What the figures of the splits are worth: those that have chosen a model are optimistic."""
    if are_same:
        return "There were no test images: the validation images, which have chosen the model, were tested on."
    return (
        "The validation images have chosen the model, so that their figures are optimistic; the test images have not."
    )


def _describe_temperature(found: Mapping[str, Any]) -> str:
    """What the calibration of the logits came to; nothing without one."""
    if found.get("ece_before") is None:  # as of a regression, which has none
        return ""
    errors = f"from {found['ece_before']:.1%} to {found['ece_after']:.1%}"
    where = f"on {found['images']:,} validation images"
    return f"Calibration by a temperature of {found['temperature']:.3g} changed the error {errors} {where}."
