"""Evaluation of an exported file on labelled images, with the results that a test of a checkpoint has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lit_ft.console import log_progress
from lit_ft.data.split import warn_without_test
from lit_ft.evaluation.results import print_intervals, write_results
from lit_ft.export.examples import read_pixels
from lit_ft.export.predictor import ExportedModel
from lit_ft.runs import Run
from lit_ft.tasks.metrics import warn_absent_classes
from lit_ft.training.evaluated import Evaluated, name_images
from lit_ft.training.metrics_file import write_metrics
from lit_ft.training.result_names import find_place, name_place
from lit_ft.training.trainer import print_scores

_BATCH = 32


def evaluate_file(model: ExportedModel, file: Path, data: Any, run: Run) -> None:
    """Tests an exported file, prints its metrics, and writes its results.

    Args:
        model: The file.
        file: Its path.
        data: The data module, set up, of the classes of the model.
        run: The folder that the results are written to.
    """
    if data.tested != "test":
        warn_without_test(data.test_advice)
    name = name_file_results(data)
    found, task = compute_outputs(model, data), model.task
    metrics = task.metrics("test/")
    task.update(metrics, found.logits, found.targets)
    losses = task.image_losses(found.logits, found.targets)
    scores = {name: float(value) for name, value in {**metrics.compute(), "test/loss": losses.mean()}.items()}
    warn_absent_classes(metrics, "test", model.class_names)
    run.folder.mkdir(parents=True, exist_ok=True)
    facts = {"split": data.tested, "images": len(found.targets), "data": find_place(data)}
    write_metrics(run, name, {**facts, **scores}, file)
    print_scores([scores])
    intervals = write_results(run, task, model.class_names, found, "test", name)
    print_intervals(intervals, task, "test")


def name_file_results(data: Any) -> str:
    """What the results of a file are called: ``test`` for the images of a config, else also by folder or table."""
    return "test" if getattr(data, "tested_classes", None) is None else f"test_{name_place(find_place(data))}"


def compute_outputs(model: ExportedModel, data: Any) -> Evaluated:
    """What an exported file makes of the images that are tested, as logits."""
    split, parts = data.splits[data.tested], list[torch.Tensor]()

    def each() -> Iterator[int]:
        for start in range(0, len(split), _BATCH):
            rows = range(start, min(start + _BATCH, len(split)))
            images = [read_pixels(split, row, model.file.description.channels, model.reader) for row in rows]
            parts.append(model.judge(images)["answers"])
            yield len(rows)

    log_progress("Test", each(), len(split))
    logits = model.task.restore_logits(torch.cat(parts))
    return Evaluated(logits, model.task.hard(split.targets), name_images(data, "test", len(split)))
