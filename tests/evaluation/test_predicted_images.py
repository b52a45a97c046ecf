"""Tables of predictions, read back and measured."""

import numpy as np
import pytest
import torch

from lit_ft.evaluation.predicted_images import parse_predictions
from lit_ft.evaluation.results import prediction_rows
from lit_ft.tasks.task import Task
from lit_ft.training.evaluated import Evaluated

NAMES = ["ant", "bee", "cat", "none of this"]


def written(task, num=60, seed=0):
    """Outputs of a task with four names, and what is written of them, as it is read back."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, 4, generator=generator)
    if task == "multiclass":
        targets = torch.randint(3, (num,), generator=generator)
    else:
        targets = torch.randn(num, 4, generator=generator)
        targets = (targets > 0.5).int() if task == "multilabel" else targets.double()
    found = Evaluated(logits, targets, [f"{row}.jpg" for row in range(num)])
    head, *rows = prediction_rows(found, Task(task, 4), NAMES)
    return found, [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_metrics_of_a_table_are_those_of_the_evaluation(task):
    found, rows = written(task)
    images = parse_predictions(rows)
    assert (images.task, len(images)) == (task, 60)
    drawn = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=3).astype(float)
    measured = images.measure(drawn)
    for sample, weights in enumerate(drawn):
        repeated = torch.repeat_interleave(torch.arange(60), torch.from_numpy(weights).long())
        own = Task(task, 4)
        metrics = own.metrics("")
        own.update(metrics, found.logits[repeated], found.targets[repeated])
        expected = {name: float(value) for name, value in metrics.compute().items() if name in measured}
        expected["loss"] = float(own.image_losses(found.logits, found.targets)[repeated].mean())
        assert measured.keys() == expected.keys()
        # Tables have six digits of losses, and nine of the rest; metrics are float32.
        assert {name: values[sample] for name, values in measured.items()} == pytest.approx(expected, rel=2e-5)


def test_captions_name_what_is_true_and_what_was_predicted():
    _, rows = written("multiclass")
    images = parse_predictions(rows)
    row = int(np.flatnonzero(~images.right)[0])
    share = f"{float(rows[row]['probability']):.0%}"
    assert images.captions(row) == (rows[row]["class"], f"{rows[row]['predicted']} ({share})")
    labels = {"path": "a", "sun": "1", "sea": "0", "probability of sun": "0.25", "probability of sea": "0.75"}
    images = parse_predictions([{**labels, "loss": "1"}, {**labels, "probability of sea": "0.25", "loss": "2"}])
    assert images.captions(0) == ("sun", "sea")
    assert images.captions(1) == ("sun", "no label")
    assert images.right.tolist() == [False, False]


def test_names_in_another_order_are_the_same_images():
    for task in ("multiclass", "multilabel"):
        images = parse_predictions(written(task)[1])
        other = images.renamed([*reversed(images.names), "more"] if task == "multiclass" else [*reversed(images.names)])
        once = np.ones((1, len(images)))
        assert {k: v.item() for k, v in other.measure(once).items()} == pytest.approx(
            {k: v.item() for k, v in images.measure(once).items()}
        )
        assert [other.captions(row)[0].split(", ")[0] for row in range(3)] == [
            images.captions(row)[0].split(", ")[-1] for row in range(3)
        ]


def test_table_without_rows_is_none():
    assert parse_predictions([]) is None
