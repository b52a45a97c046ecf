import pytest
from torch.utils.data import Dataset

from lit_ft.data.datasets.classes import DatasetClass
from lit_ft.data.datasets.splits import make_splits
from lit_ft.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*has no split called")


class Numbered(Dataset):
    """Remembers what it was made with; as many items as letters of it."""

    def __init__(self, **given):
        self.given = given

    def __len__(self):
        return len(str(self.given.get("split", "x")))

    def __getitem__(self, index):
        return None, index


class ByTrain(Numbered):
    def __init__(self, root, train=True, transform=None, download=True):
        super().__init__(root=root, train=train, download=download)


class BySplit(Numbered):
    names = ("train", "valid", "test")
    error = ValueError

    def __init__(self, root, split="train", level="low"):
        if split not in self.names:
            raise self.error(f"unknown split {split}")
        super().__init__(root=root, split=split, level=level)


class OfAll(BySplit):
    names = ("trainval", "test", "val")
    error = KeyError


class WithoutValidation(BySplit):
    names = ("train", "test")
    error = FileNotFoundError


class Untested(BySplit):
    names = ("train", "val")
    error = AssertionError


class Odd(BySplit):
    names = ("fit", "check")


class Broken(BySplit):
    def __init__(self, root, split="train"):
        super().__init__(root, split)
        if split == "test":
            raise ValueError("its table has no column label")


class Whole(Numbered):
    def __init__(self, size=3):
        super().__init__(size=size)


class HandsOn(ByTrain):
    def __init__(self, root, kind, **kwargs):
        super().__init__(root, **kwargs)
        self.given["kind"] = kind


def made(cls, given=None, by_split=None, root="R"):
    found = DatasetClass(f"own.{cls.__name__}", cls)
    splits = make_splits(found, found.arguments(root, "D", given or {}), by_split)
    return {split: one.given for split, one in splits.items()}


@pytest.mark.parametrize(
    ("cls", "by", "values"),
    [
        (ByTrain, "train", {"train": True, "test": False}),
        (BySplit, "split", {"train": "train", "val": "valid", "test": "test"}),
        (OfAll, "split", {"train": "trainval", "test": "test"}),  # of which val would be a part
        (WithoutValidation, "split", {"train": "train", "test": "test"}),
        (Untested, "split", {"train": "train", "val": "val"}),
    ],
)
def test_splits_are_made_as_the_signature_says(cls, by, values):
    assert {split: given[by] for split, given in made(cls).items()} == values


def test_nothing_is_downloaded_and_the_root_is_that_of_the_user_or_the_default():
    assert made(ByTrain)["test"] == {"root": "R", "train": False, "download": False}
    assert made(ByTrain, root=None)["train"]["root"] == "D"
    assert made(Whole) == {"train": {"size": 3}}


def test_arguments_are_handed_on_to_each_split():
    assert {given["level"] for given in made(BySplit, {"level": "high"}).values()} == {"high"}
    assert made(HandsOn, {"kind": "k"})["test"] == {"root": "R", "train": False, "download": False, "kind": "k"}
    assert list(made(BySplit, {"split": "valid"})) == ["train"]  # of which the others are held out
    by_split = {"train": {"level": "a"}, "val": {"level": "b", "split": "valid"}}
    assert [given["level"] for given in made(BySplit, by_split=by_split).values()] == ["a", "b"]


@pytest.mark.parametrize(
    ("cls", "given", "message"),
    [
        (
            Odd,
            {},
            r"data.dataset: Odd has no split called train \(unknown split train-standard\); .* data.split_args",
        ),
        (HandsOn, {}, "data.dataset_args: HandsOn needs kind; give data.dataset_args '{kind: VALUE}'"),
        (BySplit, {"levels": 1}, "data.dataset_args: unknown argument of BySplit 'levels'; nearest: level"),
        (BySplit, {"root": "x"}, "data.dataset_args: root is not for the class; give data.root"),
        (ByTrain, {"download": True}, "data.dataset_args: download is not for the class; give data.download"),
    ],
)
def test_arguments_that_cannot_be_are_refused(cls, given, message):
    with pytest.raises(UserError, match=f"^{message}"):
        made(cls, given)


def test_error_about_something_else_is_not_taken_for_a_missing_split():
    with pytest.raises(ValueError, match="no column label"):
        made(Broken)


def test_splits_that_are_missing_in_an_own_class_are_told():
    with pytest.warns(UserWarning, match="WithoutValidation has no split called val, so it is held out where one is"):
        made(WithoutValidation)
