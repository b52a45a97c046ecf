"""Images that a report shows."""

import math

import numpy as np
from small_runs import FewDigits

from lit_ft.evaluation.predicted_images import PredictedImages
from lit_ft.evaluation.report_images import (
    ShownImage,
    draw_sample,
    find_label_suspects,
    find_mistakes,
    find_pictures,
    list_suspects,
    show,
)

ANT, BEE, CAT = 0.0, 1.0, 2.0


def images(*rows):
    """Images of rows of true class, predicted class, probability and loss."""
    true, predicted, probability, losses = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    paths = [f"{row}.jpg" for row in range(len(rows))]
    return PredictedImages("multiclass", paths, true, predicted, probability, losses, ["ant", "bee", "cat"])


FOUND = images(
    (ANT, ANT, 0.9, 0.1), (ANT, ANT, 0.7, 0.4),  # an ant is recognised with 0.8 on average
    (BEE, ANT, 0.85, 2.0), (BEE, ANT, 0.75, 3.0),
    (ANT, BEE, 0.99, 5.0),  # no bee is recognised, so that nothing can be said
    (CAT, CAT, 0.6, 0.5), (BEE, CAT, 0.95, math.nan),
)  # fmt: skip


def test_label_is_suspect_where_another_class_is_as_probable_as_usual_for_it():
    assert find_label_suspects(FOUND) == [6, 2]


def test_mistakes_are_by_their_loss_and_one_that_is_not_finite_is_the_worst():
    assert find_mistakes(FOUND) == [6, 4, 3, 2]
    assert find_mistakes(FOUND, without=[6, 2]) == [4, 3]


def test_suspects_of_all_splits_are_listed_together():
    other = images((ANT, ANT, 0.5, 0.1), (BEE, ANT, 0.9, 0.1))
    found = [(one.path, one.true, one.split, one.predicted) for one in list_suspects({"test": FOUND, "val": other})]
    assert found == [
        ("6.jpg", "bee", "test", "cat (95%)"),
        ("1.jpg", "bee", "val", "ant (90%)"),
        ("2.jpg", "bee", "test", "ant (85%)"),
    ]
    # Of validation images that were tested on, each once.
    found = [(one.path, one.split) for one in list_suspects({"val": FOUND, "test": FOUND})]
    assert found == [("6.jpg", "test"), ("2.jpg", "test")]


def test_sample_is_the_same_each_time_and_tells_what_is_wrong_alone():
    many = images(*[(ANT, ANT, 0.5, 0.1), (ANT, BEE, 0.5, 0.1)] * 20)
    rows = draw_sample(many)
    assert rows == draw_sample(many) == sorted(set(rows))
    assert len(rows) == 16
    assert {bool(one.predicted) for one in show(many, rows, "test")} == {True, False}
    assert {one.loss for one in show(many, rows, "test")} == {"0.1"}
    assert draw_sample(FOUND) == list(range(7))


def test_numbers_have_no_suspects_and_all_losses():
    numbers = PredictedImages(
        "regression", ["a", "b"], np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]]), np.empty(0), np.array([0.0, 4.0]),
        ["age"],
    )  # fmt: skip
    assert find_label_suspects(numbers) == []
    assert find_mistakes(numbers) == [1, 0]
    assert [(one.true, one.predicted) for one in show(numbers, [1], "test")] == [("age 2", "age 4")]


def test_images_in_memory_have_thumbnails_of_their_split():
    data = FewDigits()
    data.setup()
    own = [ShownImage("3", "", "", "", split) for split in ("val", "test")]
    pictures = [find_pictures(data)(image) for image in own]
    assert pictures == [data.splits[split].thumbnail(3) for split in ("val", "test")]
    assert pictures[0] != pictures[1]
    assert find_pictures(data)(ShownImage("99999", "", "", "", "val")) == ""
    assert find_pictures(None)(own[0]) == ""
