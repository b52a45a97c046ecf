"""Scores of folds: mean, standard deviation and interval against numbers by hand, and what is written of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_ft.evaluation.fold_scores import FoldScores, add_finished, finished_folds, summarise
from lit_ft.evaluation.report_facts import format_metric
from lit_ft.probes.heads.cross_validation import wilson_interval
from lit_ft.runs import Run

TEST = {"split": "test", "images": 9, "test/acc": 0.5}


def fold(whole: Run, number: int, right: int, of: int = 10, **entries: Any) -> None:
    """A fold with so many images right of two classes, each with a probability of 3/4."""
    run = whole.fold(number)
    run.folder.mkdir(parents=True)
    val = {"split": "val", "images": of, "val/acc": right / of, "val/loss": 0.5, "val/f1": None}
    selection = {"monitor": "val/acc", "chosen": f"epoch {number}"}
    run.metrics.write_text(json.dumps({"val": val, "selection": selection, **entries}))
    targets = torch.arange(of) % 2
    said = torch.where(torch.arange(of) < right, targets, 1 - targets)
    content = {
        "names": [f"{number}-{row}" for row in range(of)],
        "predictions": torch.full((of, 2), 0.25).scatter(1, said.unsqueeze(1), 0.75),
        "targets": targets,
        "folds": torch.full((of,), number),
        "task": "multiclass",
        "class_names": ["a", "b"],
        "label_smoothing": 0.0,  # as an earlier version wrote it
    }
    torch.save(content, run.out_of_fold)


@pytest.fixture
def whole(tmp_path: Path) -> Run:
    run = Run(tmp_path / "version_0")
    for number, right in enumerate((7, 9, 8), 1):
        fold(run, number, right, test=TEST)
    return run


def test_mean_deviation_and_interval_are_those_by_hand(whole: Run) -> None:
    found = summarise(whole, 3)
    assert found.scores["val/acc"] == [0.7, 0.9, 0.8]
    flat = found.flat()
    assert flat["val/acc"] == pytest.approx(0.8)
    assert flat["val/acc_std"] == pytest.approx(0.1)
    # t of 2 degrees of freedom is 4.302653; the variance 0.01 counts (1/3 + 1/2) times, and an accuracy is at most 1.
    assert flat["val/acc_low"] == pytest.approx(0.8 - 4.302653 * math.sqrt(0.01 * 5 / 6), abs=1e-6)
    assert flat["val/acc_high"] == 1.0
    assert "val/loss_low" not in flat  # of one value in all folds
    assert math.isnan(flat["val/f1"])
    assert (flat["test/acc"], flat["test/acc_std"], "test/acc_low" in flat) == (0.5, 0.0, False)


def test_accuracy_that_is_equal_in_each_fold_has_the_interval_of_one_test(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for number in (1, 2):
        fold(run, number, right=10)
    assert summarise(run, 2).intervals["val/acc"] == pytest.approx((wilson_interval(1.0, 20)[0], 1.0))


def test_other_metric_that_is_equal_in_each_fold_has_no_interval(tmp_path: Path) -> None:
    run = Run(tmp_path)
    val = {"split": "val", "images": 20, "val/acc": 1.0, "val/f1": 1.0}
    for number in (1, 2, 3):
        fold(run, number, right=20, of=20, val={**val, "val/loss": number / 8})
    found = summarise(run, 3)
    assert "interval" not in found.entry()["metrics"]["val/f1"]
    assert found.intervals.keys() == {"val/acc", "val/loss"}
    # Of the loss, 4.302653 times the root of 1/64 times (1/3 + 1/2), around 1/4, and no less than 0.
    ends = {row[0]: row[2:5] for row in found.rows(format_metric) if row[0].startswith("95%")}
    assert ends == {"95% from": ["94.0%", "-", "0.0000"], "95% to": ["100.0%", "-", "0.7410"]}


def test_each_image_is_in_the_table_once_and_measured_at_once(whole: Run) -> None:
    found = summarise(whole, 3)
    assert found.out_of_fold["val/acc"] == pytest.approx(24 / 30)
    assert found.out_of_fold["val/loss"] == pytest.approx(-(24 * math.log(0.75) + 6 * math.log(0.25)) / 30)
    assert found.flat()["out_of_fold/acc"] == pytest.approx(0.8)
    rows = list(csv.DictReader(whole.predictions.open()))
    assert [row["path"] for row in rows] == [f"{number}-{row}" for number in (1, 2, 3) for row in range(10)]
    assert [row["fold"] for row in rows] == ["1"] * 10 + ["2"] * 10 + ["3"] * 10
    assert sum(row["class"] == row["predicted"] for row in rows) == 24
    assert (rows[0]["probability of a"], rows[0]["probability of b"]) == ("0.75", "0.25")
    assert len(list(csv.reader(whole.result_table("predictions", "val").open()))) == 31
    metrics = json.loads(whole.metrics.read_text())
    assert metrics["val"]["images"] == 30
    assert metrics["val"]["val/acc"] == pytest.approx(0.8)
    assert metrics["val"]["intervals"]["val/acc"][0] < 0.8 < metrics["val"]["intervals"]["val/acc"][1]
    assert metrics["folds"]["metrics"]["val/acc"]["folds"] == [0.7, 0.9, 0.8]
    assert metrics["folds"]["finished"] == [1, 2, 3]


def test_what_is_written_is_read_again_with_its_rows(whole: Run) -> None:
    found = summarise(whole, 3)
    again = FoldScores.read(json.loads(whole.metrics.read_text()))
    assert again is not None
    assert again.flat() == pytest.approx(found.flat(), nan_ok=True)
    rows = again.rows(format_metric)
    assert rows[0] == ["fold", "images", "val/acc", "val/f1", "val/loss", "test/acc", "chosen"]
    assert rows[2] == ["2", "10", "90.0%", "", "0.5000", "50.0%", "epoch 2"]
    assert [row[:3] for row in rows[4:]] == [
        ["mean", "", "80.0%"], ["std", "", "10.0%"], ["95% from", "", "40.7%"], ["95% to", "", "100.0%"],
        ["out of fold", "30", "80.0%"],
    ]  # fmt: skip
    assert "3 folds of 30 images" in again.format()
    assert "\n1                10   0.7000" in again.format()
    assert FoldScores.read({"val": {"val/acc": 0.5}}) is None


def test_folds_without_logits_have_scores_and_no_predictions(whole: Run) -> None:
    whole.fold(2).out_of_fold.unlink()
    with pytest.warns(UserWarning, match=r"^no out-of-fold predictions, as the model of fold 2 gave no logits"):
        found = summarise(whole, 3)
    assert found.scores["val/acc"] == [0.7, 0.9, 0.8]
    assert found.out_of_fold == {}
    assert not whole.predictions.exists()


def test_test_images_that_are_those_of_the_fold_are_not_scored_twice(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for number in (1, 2):
        fold(run, number, 8, test={**TEST, "split": "val"})
    assert [name for name in summarise(run, 2).scores if name.startswith("test/")] == []


def test_fold_is_finished_when_that_is_noted_and_as_long_as_it_is_there(whole: Run) -> None:
    assert finished_folds(whole) == []
    for number in (2, 1):
        add_finished(whole, number)
    assert finished_folds(whole) == [1, 2]
    whole.fold(1).metrics.unlink()
    assert finished_folds(whole) == [2]
