import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from lit_ft.errors import UserError
from lit_ft.tasks.class_weight import balanced_weights, check_class_weight

NAMES = ["ant", "bee", "cat"]


class Data:
    """What a data module tells of its training images."""

    def __init__(self, counts, num_train=None):
        self._counts = counts
        if num_train is not None:
            self.sizes = lambda: {"train": num_train}

    def counts(self):
        return {"val": [1, 1, 1], **({"train": self._counts} if self._counts else {})}


def test_weights_of_one_class_an_image_are_those_of_scikit_learn():
    targets = np.repeat(np.arange(3), [6, 3, 1])
    found = balanced_weights("multiclass", Data([6, 3, 1]), NAMES)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=targets))


def test_weights_of_labels_let_those_with_and_those_without_weigh_alike():
    found = balanced_weights("multilabel", Data([8, 2, 5], num_train=10), NAMES)
    assert found.tolist() == [0.25, 4.0, 1.0]


def test_equal_classes_have_the_weight_one():
    assert balanced_weights("multiclass", Data([7, 7, 7]), NAMES).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(
    ("task", "data", "text"),
    [
        ("multiclass", None, "the data module has no counts() of the training images of each class; add that method"),
        ("multiclass", SimpleNamespace(), "the data module has no counts() of the training images of each class"),
        ("multiclass", SimpleNamespace(sampling="balanced"), "data.sampling balanced already lets all classes count"),
        ("multiclass", Data(None), "the data module has no counts() of the training images of each class"),
        ("multiclass", Data([5, 0, 0]), "no training image of bee, cat; leave such classes out, or set class_weight"),
        ("multilabel", Data([5, 0, 1], 9), "no training image of bee; leave such classes out, or set class_weight to"),
        ("multilabel", Data([5, 9, 1], 9), "every training image has bee; leave such classes out, or set class_weight"),
        ("multilabel", Data([5, 4, 1]), "the data module has no sizes() of the number of images of each split; add"),
    ],
)
def test_weights_that_nobody_knows_are_refused(task, data, text):
    with pytest.raises(UserError, match=f"^model.class_weight: {re.escape(text)}"):
        balanced_weights(task, data, NAMES)


def test_of_many_classes_without_images_five_are_named():
    with pytest.raises(UserError, match=r"no training image of 0, 1, 2, 3, 4, …; leave"):
        balanced_weights("multiclass", Data([0] * 9 + [1]), [str(i) for i in range(10)])


@pytest.mark.parametrize(
    ("given", "task", "text"),
    [
        ("balancd", "multiclass", "model.class_weight: unknown weight 'balancd'; nearest: balanced (choose from bal"),
        (
            "balanced",
            "regression",
            "model.class_weight: is for model.task multiclass or multilabel, not regression",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(given, task, text):
    with pytest.raises(UserError, match=f"^{re.escape(text)}"):
        check_class_weight(given, task)


@pytest.mark.parametrize(
    ("given", "task"), [(None, "regression"), ("balanced", "multiclass"), ("balanced", "multilabel")]
)
def test_weights_that_can_be_are_not_refused(given, task):
    check_class_weight(given, task)
