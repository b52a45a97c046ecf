import pytest

from lit_ft.data.arrays.names import pair_arrays, read_name
from lit_ft.errors import UserError

READ = {
    "x_train": ("train", "images"),
    "Y_valid": ("val", "labels"),
    "xtrain": ("train", "images"),
    "testY": ("test", "labels"),
    "trainImages": ("train", "images"),
    "val_labels": ("val", "labels"),
    "emnist-balanced-train-images": ("train", "images"),
    "t10k-labels": ("test", "labels"),
    "set/test/data": ("test", "images"),
    "arr_0": (None, "images"),
    "arr_1": (None, "labels"),
    "arr_2": (None, None),
    "class_names": (None, "classes"),
    "label_names": (None, "classes"),
    "classes": (None, "classes"),
    "names": (None, None),
    "masks_train": ("train", None),
    "contest": (None, None),
}


@pytest.mark.parametrize("name", READ)
def test_name_says_split_and_role(name):
    assert read_name(name) == READ[name]


def pairs(names, **given):
    return pair_arrays(names.split(), given, {name: f"{name} (9,)" for name in names.split()}, "a.npz")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("x_train y_train x_test y_test", {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}),
        (
            "test_images test_labels train_images train_labels val_images val_labels",
            {split: (f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")},
        ),
        ("images labels", {"train": ("images", "labels")}),
        ("x y x_test y_test ids", {"train": ("x", "y"), "test": ("x_test", "y_test")}),
        ("data x_train labels y_train", {"train": ("x_train", "y_train")}),
        ("arr_0 arr_1", {"train": ("arr_0", "arr_1")}),
    ],
)
def test_arrays_are_paired_by_their_names(names, found):
    assert pairs(names) == found


def test_arrays_that_are_named_are_the_only_ones():
    assert pairs("x_train y_train x_test y_test pictures", train=["pictures", "y_train"]) == {
        "train": ("pictures", "y_train")
    }


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ("a b", {}, r"a.npz has a \(9,\), b \(9,\), and no array is called as train images.*data.train \[IMAGES,LABE"),
        ("", {}, "a.npz has no arrays, and no array"),
        ("x_train", {}, r"a.npz has x_train \(9,\): none is called as train labels; name the two"),
        ("pics target", {}, r"a.npz has pics \(9,\), target \(9,\): none is called as train images; name the two"),
        ("x_train images_train y_train", {}, ": several are train images, x_train, images_train; name"),
        (
            "x_train y_train",
            {"test": ["x_test", "y_train"]},
            "data.test: unknown array of a.npz 'x_test'; nearest: x",
        ),
        (
            "x_train y_train",
            {"train": ["x_train"]},
            "data.train: takes two names, of images and of labels, got x_",
        ),
    ],
)
def test_arrays_that_cannot_be_paired_are_listed(names, given, message):
    with pytest.raises(UserError, match=message):
        pairs(names, **given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "role"), [("x_test", "images"), ("y_val", "labels")])
def test_half_of_a_split_is_not_used_with_a_warning(name, role):
    with pytest.warns(UserWarning, match=f"has {role} for {read_name(name)[0]} and not both, so they are not used"):
        assert list(pairs(f"x_train y_train {name}")) == ["train"]
