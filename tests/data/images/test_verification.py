import pytest
import torch

from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.files.packed_paths import PackedPaths
from lit_ft.data.images.verification import drop_unreadable, format_unreadable, splits_to_verify
from lit_ft.errors import UserError

NAMES = ["ant", "bee"]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("fit", ["train", "val", "test"]),
        (None, ["train", "val", "test"]),
        ("validate", ["val"]),
        ("test", ["test"]),
        ("predict", ["predict"]),
    ],
)
def test_splits_that_a_stage_uses_are_verified(stage, expected):
    assert splits_to_verify(stage, ["train", "val", "test", "predict"], "test") == expected


def files(*targets):
    return FileSplit(PackedPaths.pack("", [f"{i}.png" for i in range(len(targets))]), torch.tensor(targets))


@pytest.mark.parametrize(
    ("split", "bad", "names", "targets"),
    [
        ("train", [], ["0.png", "1.png", "2.png"], [0, 1, 1]),
        ("train", [1], ["0.png", "2.png"], [0, 1]),
        ("val", [0], ["1.png", "2.png"], [1, 1]),  # which need not have all classes
        ("predict", [0], ["1.png", "2.png"], [0, 1]),  # whose targets are their places
    ],
)
def test_images_that_cannot_be_read_are_dropped(split, bad, names, targets):
    rest = drop_unreadable(split, files(0, 1, 1), bad, NAMES)
    assert (list(rest.paths.names()), rest.targets.tolist()) == (names, targets)


@pytest.mark.parametrize(
    ("split", "bad", "message"),
    [
        ("train", [0], "skip leaves no images of train of ant, as none can be read; fix them"),
        ("val", [0, 1, 2], "skip leaves no images of val, as none of 3 can be read; fix them"),
    ],
)
def test_split_of_which_too_little_is_left_is_refused(split, bad, message):
    with pytest.raises(UserError, match=message):
        drop_unreadable(split, files(0, 1, 1), bad, NAMES)


def test_first_ten_images_that_cannot_be_read_are_named():
    message = format_unreadable([f"{i}.png (cut short)" for i in range(12)], 1200)
    assert message.startswith("12 of 1,200 images cannot be read: 0.png (cut short), 1.png")
    assert message.endswith("9.png (cut short) and 2 more")
