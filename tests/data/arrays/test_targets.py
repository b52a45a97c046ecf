import numpy as np
import pytest

from lit_ft.data.arrays.targets import LabelArray, Labels
from lit_ft.errors import UserError


def labels(train, names=None, **others):
    arrays = {
        split: LabelArray(np.asarray(values), f"y_{split}", "k") for split, values in {"train": train, **others}.items()
    }
    return Labels(arrays, names, "n")


def read(train, names=None, task="multiclass", **others):
    found, targets = labels(train, names, **others).to_targets(task)
    return found, {split: one.tolist() for split, one in targets.items()}


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, float, ">i2"])
def test_class_numbers_are_classes_in_their_order(dtype):
    train, test = np.array([10, 9, 9, 10]).astype(dtype), np.array([[9], [10]]).astype(dtype)
    assert read(train, test=test) == (["9", "10"], {"train": [1, 0, 0, 1], "test": [0, 1]})


def test_negative_and_huge_numbers_are_classes_as_well():
    assert read([-1, 1, -1], val=[1]) == (["-1", "1"], {"train": [0, 1, 0], "val": [1]})
    assert read([2**40, 0])[0] == ["0", str(2**40)]


def test_images_that_may_be_unlabelled_are_told():
    with pytest.warns(UserWarning, match="k: y_train has the label -1 for 2 images, which is a class here; where it"):
        assert read([-1, 1, -1, 0])[0] == ["-1", "0", "1"]


def test_texts_are_classes_by_their_names():
    assert read(["bee", " ant "], test=np.array([b"ant"])) == (["ant", "bee"], {"train": [1, 0], "test": [0]})
    assert read(["10", "9"])[0] == ["9", "10"]


def test_one_hot_rows_are_classes():
    assert read([[0, 1, 0], [1, 0, 0], [0, 0, 1]]) == (["0", "1", "2"], {"train": [1, 0, 2]})


def test_given_names_are_by_number():
    assert read([1, 0], ["ant", "bee"])[0] == ["ant", "bee"]
    assert read(["bee", "ant"], ["bee", "ant"]) == (["bee", "ant"], {"train": [0, 1]})


def test_names_without_training_images_are_no_classes_with_a_warning():
    with pytest.warns(UserWarning, match="n: no training images of 'none', so these are no classes"):
        assert read([1, 2], ["none", "ant", "bee"], test=[2]) == (["ant", "bee"], {"train": [0, 1], "test": [1]})


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ([0, 0], {}, "k: y_train has one class only, '0'; two are needed"),
        ([0, 1], {"test": [1, 2, 2]}, "k: y_test has 2 labels that no training image has, '2'; leave them out"),
        (["a", "b"], {"val": ["c"]}, "k: y_val has 1 labels that no training image has, 'c'"),
        ([0, 1], {"val": ["c"]}, "k: y_train and those of other splits are not alike"),
        ([0, 5], {"names": ["a", "b"]}, "n: 2 names, but the labels in y_train go from 0 to 5; give one for each"),
        ([-1, 0], {"names": ["a", "b"]}, "n: 2 names, but the labels in y_train go from -1 to 0"),
        (["a", "c"], {"names": ["a", "b"]}, "n: labels in y_train are not among the names: 'c'"),
        ([0, 1], {"names": ["a", "a"]}, "n: 'a' is there twice"),
        ([0, 1], {"names": ["a", " "]}, "n: ' ' is no name of a class"),
        ([0.5, 1.0], {}, "k: y_train has fractions; for numbers instead of classes: model.task regression"),
        ([0.0, np.nan], {}, "k: y_train has no number for 1 images, first 1"),
        ([0.0, np.inf], {}, "k: y_train has no number for 1 images, first 1"),
        ([0, 2**64 - 1], {}, r"k: y_train has the label 1.84467e\+19, which is too large"),
        ([[0, 1], [1, 1]], {}, "k: y_train has 2 labels an image; for these: model.task multilabel"),
        ([[[0]]], {}, r"k: y_train is of shape \(1, 1, 1\); labels are \(N,\)"),
        (["a", ""], {}, "k: y_train has no label for image 1"),
        ([b"a", b"\xff"], {}, "k: y_train has text that is not in UTF-8"),
        (["é", "e\u0301"], {}, "k: the class .* comes in two forms of Unicode"),
    ],
)
def test_labels_that_are_no_classes_are_refused(train, options, message):
    if train == [0, 2**64 - 1]:
        train = np.array(train, np.uint64)
    with pytest.raises(UserError, match=f"^{message}"):
        read(train, **options)


def test_marks_are_labels():
    assert read([[0, 1], [1, 1]], task="multilabel", test=[[False, True]]) == (
        ["0", "1"],
        {"train": [[0, 1], [1, 1]], "test": [[0, 1]]},
    )
    assert read([[0, 1]], ["a", "b"], task="multilabel")[0] == ["a", "b"]


def test_numbers_keep_their_digits():
    assert read([0.1, 2], task="regression") == (["target"], {"train": [[0.1], [2.0]]})
    assert read([[1, 2], [3, 4]], ["x", "y"], task="regression", val=[[5, 6]])[1]["val"] == [[5.0, 6.0]]


@pytest.mark.parametrize(
    ("train", "task", "options", "message"),
    [
        ([0, 1], "multilabel", {}, r"k: y_train is int64 \(2,\); multilabel takes \(N, K\) of 0 and 1"),
        ([[0, 2], [0, 1]], "multilabel", {}, "k: y_train has 2; multilabel takes 0 and 1"),
        ([[0, np.nan]], "multilabel", {}, "k: y_train has nan; multilabel takes 0 and 1"),
        ([[0, 1]], "multilabel", {"test": [[0, 1, 1]]}, "k: y_test has 3 columns, and y_train has 2"),
        ([[0, 1]], "multilabel", {"names": ["a"]}, "n: 1 names, for 2 columns of y_train"),
        (["a"], "regression", {}, r"k: y_train is <U1 \(1, 1\); regression takes numbers"),
        ([1.0, np.nan], "regression", {}, "k: y_train has no number for 1 images, first 1"),
        ([1e39], "regression", {}, "k: y_train has a number beyond 3.4e38"),
    ],
)
def test_other_labels_than_the_task_takes_are_refused(train, task, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        read(train, task=task, **options)


@pytest.mark.parametrize(
    ("train", "names", "task", "fits"),
    [
        ([0, 1], ["a", "b", "c"], "multiclass", True),
        ([0, 3], ["a", "b", "c"], "multiclass", False),
        (["a", "b"], ["b", "a"], "multiclass", True),
        (["a", "d"], ["b", "a"], "multiclass", False),
        ([[0, 1]], ["a", "b"], "multilabel", True),
        ([[0, 1]], ["a"], "multilabel", False),
        ([0, 1], ["a", "b"], "regression", False),
    ],
)
def test_names_that_are_not_for_all_labels_are_left_out(train, names, task, fits):
    assert labels(train, names).with_fitting_names(task).names == (names if fits else None)
