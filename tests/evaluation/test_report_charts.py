"""Charts of a report."""

import re

import numpy as np
import pytest

from lit_ft.evaluation.predicted_images import PredictedImages
from lit_ft.evaluation.report_charts import draw_plan, draw_predictions, draw_reliability, draw_scores


def titles(svg):
    """What the points of a picture are."""
    return [text for text in re.findall("<title>([^<]*)</title>", svg) if "(" in text]


def labels():
    true = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    probability = np.array([[0.9, 0.2], [0.8, 0.2], [0.7, 0.2], [0.1, 0.2]])
    return PredictedImages("multilabel", list("abcd"), true, probability, np.empty(0), np.ones(4), ["sun", "sea"])


def test_accuracy_of_the_most_probable_is_a_running_mean():
    right, probability = [True] * 9 + [False] * 3, np.linspace(0.9, 0.4, 12)
    images = PredictedImages(
        "multiclass", [str(k) for k in range(12)], np.zeros(12), 1.0 - np.array(right), probability, np.ones(12),
        ["ant", "bee"],
    )  # fmt: skip
    shuffled = images.part(np.random.default_rng(0).permutation(12).tolist())
    (chart,) = draw_predictions(shuffled, is_binary=False).values()
    assert titles(chart) == [
        f"accuracy: {value:.4g} (share of the images {share:g})"
        for value, share in ((9 / 10, 10 / 12), (9 / 11, 11 / 12), (9 / 12, 1.0))
    ]


def test_precision_of_labels_is_by_recall():
    (chart,) = draw_predictions(labels(), is_binary=False).values()
    assert titles(chart) == [
        f"sun, AP 0.83: {value:.4g} (recall {recall:g})"
        for value, recall in ((1, 0.5), (0.5, 0.5), (2 / 3, 1.0), (0.5, 1.0))
    ]
    assert "sea" not in chart  # which no image has


def test_two_classes_have_precision_by_recall_from_the_probability_of_one():
    predicted, probability = np.array([1.0, 1, 0, 0]), np.array([0.9, 0.8, 0.6, 0.7])  # of bee: 0.9, 0.8, 0.4, 0.3
    images = PredictedImages(
        "multiclass", list("abcd"), np.array([1.0, 0, 1, 0]), predicted, probability, np.ones(4), ["ant", "bee"]
    )
    charts = draw_predictions(images, is_binary=True)
    assert list(charts) == ["Accuracy of the most probable", "Precision"]
    bee = [title for title in titles(charts["Precision"]) if title.startswith("bee")]
    assert bee == [
        f"bee, AP 0.83: {value:.4g} (recall {recall:g})"
        for value, recall in ((1, 0.5), (0.5, 0.5), (2 / 3, 1.0), (0.5, 1.0))
    ]


def test_equal_probabilities_are_one_threshold():
    true, probability = np.array([[1.0], [0.0], [1.0]]), np.array([[0.5], [0.5], [np.nan]])
    images = PredictedImages("multilabel", list("abc"), true, probability, np.empty(0), np.ones(3), ["sun"])
    assert titles(draw_predictions(images, is_binary=False)["Precision"]) == ["sun, AP 0.50: 0.5 (recall 1)"]


def test_scores_of_training_are_beside_those_of_validation():
    history = [{"epoch": 0, "train/acc": 0.5, "val/loss": 1.0, "val/acc": 0.75, "val/f1": 0.7, "train/loss": 1.0}]
    charts = draw_scores(history)
    assert [title.partition(":")[0] for title in titles(charts["Scores"])] == ["train/acc", "val/acc", "val/f1"]
    charts = draw_scores([{"epoch": 0, "train/mse": 0.5, "val/loss": 1.0, "val/mse": 0.75}])
    assert charts["Scores"] == ""
    assert [title.partition(":")[0] for title in titles(charts["mse"])] == ["train/mse", "val/mse"]


def test_numbers_of_many_images_are_a_part_of_them():
    values = np.arange(5000.0)[:, None]
    paths = [str(k) for k in range(5000)]
    images = PredictedImages("regression", paths, values, values, np.empty(0), values[:, 0], ["age"])
    (chart,) = draw_predictions(images, is_binary=False).values()
    assert chart.count("<circle") == 1000


def test_reliability_of_labels_counts_each():
    chart, words = draw_reliability(labels())
    # In bins: 0.1 and 0.2 are never right, 0.7 and 0.9 always, 0.8 never: (0.1 + 4 * 0.2 + 0.3 + 0.1 + 0.8) / 8.
    assert words == "Expected calibration error 26.2% of 8 labels in 15 bins of probability."
    assert len(titles(chart)) == 5


@pytest.mark.parametrize("epochs", [[], [0, 1, 2]])
def test_plan_has_the_epochs_in_which_stages_train(epochs):
    history = [{"epoch": epoch, "lr/head": 0.1, "lr/stem": 0.1 * (epoch != 1)} for epoch in epochs]
    found = re.findall("<title>([^<]*)</title>", draw_plan(history))
    assert found == (["head: epochs 0 to 2", "stem: epochs 0 to 0", "stem: epochs 2 to 2"] if epochs else [])
