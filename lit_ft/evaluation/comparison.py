"""Comparison of runs: what differs in their configs, and by how much they differ on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_ft.console import format_path
from lit_ft.data.loading.protocols import Split
from lit_ft.evaluation.paired_images import Pair, pair_runs
from lit_ft.evaluation.predicted_images import PredictedImages, parse_predictions
from lit_ft.evaluation.run_files import (
    is_tested_on_validation,
    read_config,
    read_metrics,
    read_table,
    refuse_damaged,
)
from lit_ft.runs import Run

_OF_THE_PLACE = ("ckpt_path", "name", "trainer.default_root_dir")
"""Options that say where a run is, and not what it is."""


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of a run.

    Args:
        title: Its folder.
        options: Its config, by the full names of the options.
        metrics: The metrics of a split, by name.
        intervals: Their intervals.
        chosen: The model that was handed back, where that is known.
        seconds: The seconds that it took, by part.
        images: What it predicted for the images of the split, where that is known.
        sizes: The number of its images, by split.
        classes: Its classes, where these are known.
        caveats: What must be known of its metrics.
    """

    title: str
    options: dict[str, Any]
    metrics: dict[str, float]
    intervals: dict[str, list[float]]
    chosen: str
    seconds: dict[str, float]
    images: PredictedImages | None
    sizes: dict[str, int]
    classes: list[str]
    caveats: list[str]


@dataclass(frozen=True)
class RunComparison:
    """Runs, of which each is compared with the first.

    Args:
        runs: The runs.
        split: The split that they are compared on; empty where there is none that each has.
        options: The options that differ, and the value of each run; None where a run has none.
        pairs: A pair for each run but the first.
        untested: The runs without predictions of test images.
    """

    runs: list[ComparedRun]
    split: str
    options: dict[str, list[Any]]
    pairs: list[Pair]
    untested: list[str]


def compare_runs(runs: Sequence[Run]) -> RunComparison:
    """Compares runs by the files in their folders.

    Raises:
        UserError: If a folder is not that of a run, or a file in it is damaged.
    """
    splits: tuple[Split, Split] = ("test", "val")
    split = next((one for one in splits if all(run.result_table("predictions", one).is_file() for run in runs)), None)
    found = [_read_run(run, split or "test") for run in runs]
    names = dict.fromkeys(name for one in found for name in one.options)
    values = {name: [one.options.get(name) for one in found] for name in names if name not in _OF_THE_PLACE}
    differing = {name: own for name, own in values.items() if any(value != own[0] for value in own)}
    pairs = [pair_runs(found[0].images, other.images, other.title) for other in found[1:]]
    tested = [run.result_table("predictions", "test").is_file() for run in runs]
    untested = [one.title for one, is_tested in zip(found, tested, strict=True) if not is_tested]
    return RunComparison(found, split or "", differing, pairs, untested)


def _read_run(run: Run, split: Split) -> ComparedRun:
    config = read_config(run)
    with refuse_damaged(run.metrics):
        metrics = read_metrics(run)
        own, facts = metrics.get(split, {}), metrics.get("run", {})
        intervals = {
            str(name).partition("/")[2]: [float(ends[0]), float(ends[1])]
            for name, ends in (own.get("intervals") or {}).items()
        }
        seconds = {str(name): float(value) for name, value in (facts.get("seconds") or {}).items()}
        sizes = {str(name): int(value) for name, value in (facts.get("images") or {}).items()}
        chosen = str(metrics.get("selection", {}).get("chosen", ""))
        refit = metrics.get("refit", {})
        if refit and own.get("checkpoint") == refit.get("checkpoint"):  # not of the model before it
            chosen, sizes["train"] = ", ".join(filter(None, (chosen, "refit"))), int(refit["images"])
        values = {
            name.partition("/")[2]: float(value)
            for name, value in own.items()
            if name.startswith(f"{split}/") and isinstance(value, (int, float))
        }
    with refuse_damaged(file := run.result_table("predictions", split)):
        images = parse_predictions(read_table(file))
    with refuse_damaged(file := run.result_table("per_class", split)):
        classes = [row["class"] for row in read_table(file)]
    title, caveats = str(format_path(run.folder)), list(_list_caveats(run, metrics, split))
    options = dict(flatten(config))
    return ComparedRun(title, options, values, intervals, chosen, seconds, images, sizes, classes, caveats)


def _list_caveats(run: Run, metrics: Mapping[str, Mapping[str, Any]], split: Split) -> Iterator[str]:
    own = metrics.get(split, {})
    if split == "test" and is_tested_on_validation(run, metrics):
        yield "its test images are the validation images, which have chosen the model: its figures are optimistic"
    if own.get("is_before_refit"):
        yield "its figures are those of the model before the refit"
    best, measured = run.checkpoint("best"), own.get("checkpoint")
    if measured and best.is_file() and (run.folder / str(measured)).resolve() != best.resolve():
        yield f"its figures are those of {measured}, not of the model that it hands back"


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a config by their full names, as on the command line; a class is the value of its own option.

    >>> dict(flatten({"data": {"class_path": "lit_ft.A", "init_args": {"root": "x"}}, "seed": 1}))
    {'data': 'lit_ft.A', 'data.root': 'x', 'seed': 1}
    """
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            yield name, value["class_path"]
            yield from flatten(value.get("init_args") or {}, f"{name}.")
        elif isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value
