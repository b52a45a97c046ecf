"""What the models of folds gave for the images that they have not seen: joined, measured, and as a table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_ft.evaluation.out_of_fold import OutOfFold
from lit_ft.tasks.standardisation import Standardisation
from lit_ft.tasks.task import Task, TaskName


def part(task: TaskName, predictions: Tensor, targets: Tensor, fold: int, names: list[str]) -> OutOfFold:
    images = [f"{fold}-{row}.png" for row in range(len(targets))]
    folds = torch.full((len(targets),), fold)
    return OutOfFold(images, predictions, targets, folds, task, names)


def test_classes_of_all_folds_are_one_table_with_every_probability() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    first = part("multiclass", logits[:4].softmax(dim=1), targets[:4], 1, ["ant", "=bee", "cat"])
    second = part("multiclass", logits[4:].softmax(dim=1), targets[4:], 2, ["ant", "=bee", "cat"])
    both = OutOfFold.join([first, second])
    found, task = both.as_evaluated()
    expected = Task("multiclass", 3).image_losses(logits, targets)
    torch.testing.assert_close(task.image_losses(found.logits, found.targets).float(), expected)
    head, *rows = both.rows()
    probabilities = ["probability of ant", "probability of =bee", "probability of cat"]
    assert head == ["path", "fold", "class", "predicted", "probability", "loss", *probabilities]
    assert [row[0] for row in rows] == [*(f"1-{i}.png" for i in range(4)), *(f"2-{i}.png" for i in range(3))]
    assert [row[1] for row in rows] == ["1"] * 4 + ["2"] * 3
    assert [row[2] for row in rows] == ["ant", "'=bee", "cat", "ant", "'=bee", "cat", "ant"]
    table = torch.tensor([[float(cell) for cell in row[6:]] for row in rows])
    assert torch.equal(table, logits.softmax(dim=1))  # as many digits as give the numbers back
    assert [float(row[4]) for row in rows] == pytest.approx(table.max(dim=1).values.tolist(), rel=1e-5)
    assert [float(row[5]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)


def test_labels_have_a_probability_each() -> None:
    probabilities, targets = torch.tensor([[0.9, 0.2], [0.4, 0.6]]), torch.tensor([[1, 0], [1, 1]])
    head, *rows = part("multilabel", probabilities, targets, 3, ["a", "b"]).rows()
    assert head == ["path", "fold", "a", "b", "probability of a", "probability of b", "loss"]
    assert [row[:4] for row in rows] == [["3-0.png", "3", "1", "0"], ["3-1.png", "3", "1", "1"]]
    assert [float(cell) for row in rows for cell in row[4:6]] == pytest.approx([0.9, 0.2, 0.4, 0.6], rel=1e-6)


def test_numbers_of_folds_with_other_units_are_measured_in_their_own() -> None:
    targets = torch.tensor([[1.0], [2.0], [30.0], [50.0]], dtype=torch.float64)
    predictions = targets + torch.tensor([[0.5], [-0.5], [2.0], [-2.0]], dtype=torch.float64)
    first = part("regression", predictions[:2], targets[:2], 1, ["cm"])
    both = OutOfFold.join([first, part("regression", predictions[2:], targets[2:], 2, ["cm"])])
    found, task = both.as_evaluated()
    assert task.standardisation == Standardisation.of(targets)
    metrics = task.metrics("val/")
    task.update(metrics, found.logits, found.targets)
    assert float(metrics.compute()["val/mse"]) == pytest.approx((0.25 + 0.25 + 4 + 4) / 4)
    assert float(metrics.compute()["val/mae"]) == pytest.approx(1.25)
    head, *rows = both.rows()
    assert head == ["path", "fold", "cm", "predicted of cm", "loss"]
    assert [[float(cell) for cell in row[1:4]] for row in rows] == [[1, 1, 1.5], [1, 2, 1.5], [2, 30, 32], [2, 50, 48]]


def test_what_is_written_loads_without_running_code(tmp_path: Path) -> None:
    one = part("multiclass", torch.eye(2), torch.tensor([0, 1]), 1, ["a", "b"])
    torch.save(vars(one), tmp_path / "one.pt")
    again = OutOfFold.read(tmp_path / "one.pt")
    assert (again.names, again.task, again.class_names) == (one.names, "multiclass", ["a", "b"])
    assert torch.equal(again.predictions, one.predictions)
