import pytest
import torch

from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.data.modules.held_out import HeldOutFractions
from lit_ft.errors import UserError


def images(count, classes=2):
    return ArraySplit.whole(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), torch.arange(count) % classes)


def test_both_fractions_are_of_all_images():
    splits = HeldOutFractions(0.2, 0.3).apply({"train": images(40)}, 0, ["a", "b"])
    assert {split: len(one) for split, one in splits.items()} == {"train": 20, "test": 12, "val": 8}
    assert all(one.targets.float().mean() == 0.5 for one in splits.values())
    assert sorted(torch.cat([one.rows for one in splits.values()]).tolist()) == list(range(40))


def test_splits_that_are_given_stay():
    given = {"train": images(20), "val": images(6)}
    splits = HeldOutFractions(0.2, 0.0).apply(given, 0, ["a", "b"])
    assert splits == given
    assert list(HeldOutFractions(0.2, 0.1).apply(given, 0, ["a", "b"])) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("val", "test", "message"),
    [
        (0, 0, "data.val_fraction: 0 is not a fraction between 0 and 1"),
        (0.5, 1, "data.test_fraction: 1 is not a fraction at least 0 and below 1"),
        (0.5, 0.5, "data.test_fraction: 0.5 and data.val_fraction 0.5 leave nothing to train on"),
    ],
)
def test_fractions_out_of_range_are_refused(val, test, message):
    with pytest.raises(UserError, match=f"^{message}"):
        HeldOutFractions(val, test)


def test_class_of_one_image_is_refused_by_name():
    with pytest.raises(UserError, match=r"^data.val_fraction: the class 'c' has one image, and two are needed"):
        HeldOutFractions(0.5, 0).apply({"train": images(6, 3).part(torch.tensor([0, 3, 1, 4, 2]))}, 0, ["a", "b", "c"])
