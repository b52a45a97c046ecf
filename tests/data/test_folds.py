"""Folds of images: each image once, classes evenly, groups whole; and what cannot be divided."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_ft.data.files.file_split import FileSplit, PackedPaths
from lit_ft.data.folds import check_folds, make_folds, take_fold, usable_folds
from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.errors import UserError

NAMES = ["ant", "bee", "cat"]


def test_folds_hold_each_image_once_and_classes_evenly() -> None:
    classes = torch.tensor([0] * 40 + [1] * 10)
    folds = make_folds(classes, num_folds=5, repeats=3)
    assert folds.shape == (3, 50)
    for repeat in folds:
        assert torch.bincount(repeat[:40]).tolist() == [8] * 5
        assert torch.bincount(repeat[40:]).tolist() == [2] * 5
    assert not torch.equal(folds[0], folds[1])
    assert torch.equal(folds, make_folds(classes, num_folds=5, repeats=3))


def test_no_group_is_in_two_folds() -> None:
    classes, groups = torch.arange(60) % 2, torch.arange(60) // 4
    for repeat in make_folds(classes, num_folds=4, repeats=2, groups=groups):
        assert all(len(set(repeat[groups == group].tolist())) == 1 for group in range(15))
        assert set(repeat.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("classes", "groups", "num_folds"),
    [
        ([0] * 9 + [1] * 3, None, 3),
        ([0] * 9 + [1] * 9, None, 5),
        ([0, 1] * 6, [0] * 6 + [1] * 6, 2),
        ([0] * 4 + [1] * 3, [0, 1, 2, 3, 4, 5, 6], 4),  # for scikit-learn no more than the largest class has images
        ([0, 1] * 6 + [2] * 3, [0] * 4 + [1] * 4 + [2] * 4 + [3] * 3, 3),  # nobody else has images of class 2
        ([0] * 9 + [2] * 4, None, 4),  # a class without an image does not count
        ([0] * 9 + [1] * 4 + [2], None, 4),  # nor does a single one, which is never held out
    ],
)
def test_number_of_folds_is_lowered(classes: list[int], groups: list[int] | None, num_folds: int) -> None:
    given = None if groups is None else torch.tensor(groups)
    assert usable_folds(torch.tensor(classes), 5, given) == num_folds
    assert make_folds(torch.tensor(classes), 5, 1, groups=given).max() == num_folds - 1


@pytest.mark.parametrize(
    ("classes", "groups", "needed"),
    [
        ([0, 1, 2], None, "two images of a class"),
        ([0], None, "two images"),
        ([0, 1, 0, 1], [7] * 4, "two groups"),
        ([0, 0, 1, 1], [3, 3, 5, 5], "two groups at least, none of them with all images of a class"),
        ([0, 1, 2, 2], [0, 0, 0, 1], "two groups"),
    ],
)
def test_single_image_or_group_cannot_be_held_out(classes: list[int], groups: list[int] | None, needed: str) -> None:
    with pytest.raises(ValueError, match=f"needs {needed}"):
        usable_folds(torch.tensor(classes), 5, None if groups is None else torch.tensor(groups))


def test_group_with_all_images_of_a_class_is_never_held_out() -> None:
    classes = torch.tensor([0, 1] * 6 + [2, 2, 0])
    groups = torch.tensor([0] * 4 + [1] * 4 + [2] * 4 + [3] * 3)
    (folds,) = make_folds(classes, 5, 1, groups=groups)
    assert folds[12:].tolist() == [-1, -1, -1]
    assert sorted(set(folds[:12].tolist())) == [0, 1, 2]


def files(targets: Tensor, groups: list[int] | None = None) -> FileSplit:
    """As many images, called by their numbers."""
    paths = PackedPaths.pack("photos", [f"{i}.png" for i in range(len(targets))])
    return FileSplit(paths, targets, None if groups is None else torch.tensor(groups))


def take(images: FileSplit, folds: int, fold: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """The names of the images that are trained on, and of those that are held out."""
    kept, held = take_fold(images, folds, fold, seed, NAMES, "`data.groups`")
    return list(kept.paths.names()), list(held.paths.names())


def test_each_image_is_held_out_once_with_its_class_in_proportion() -> None:
    images = files(torch.tensor([0] * 20 + [1] * 10 + [2] * 5))
    taken = [take(images, 5, fold) for fold in range(1, 6)]
    everything = set(images.paths.names())
    assert sorted(name for _, held in taken for name in held) == sorted(everything)
    for kept, held in taken:
        assert set(kept) == everything - set(held)
        assert torch.bincount(images.targets[[int(name[:-4]) for name in held]]).tolist() == [4, 2, 1]
    assert take(images, 5, 1) == taken[0]
    assert take(images, 5, 1, seed=1) != taken[0]


def test_groups_are_whole_in_each_fold() -> None:
    images = files(torch.arange(60) % 3, [row // 4 for row in range(60)])
    assert images.groups is not None
    seen = set()
    for fold in range(1, 5):
        kept, held = take_fold(images, 4, fold, 0, NAMES, "`data.groups`")
        assert kept.groups is not None
        assert held.groups is not None
        assert not set(kept.groups.tolist()) & set(held.groups.tolist())
        assert len(kept) + len(held) == 60
        seen |= set(held.groups.tolist())
    assert seen == set(range(15))


def test_labels_and_numbers_are_divided_regardless_of_them() -> None:
    for targets in (torch.eye(3)[torch.arange(11) % 3].long(), torch.arange(11.0).unsqueeze(1)):
        images = ArraySplit.whole(torch.zeros(11, 1, 2, 2, dtype=torch.uint8), targets)
        held = [take_fold(images, 4, fold, 0, NAMES)[1] for fold in range(1, 5)]
        assert sorted(map(len, held)) == [2, 3, 3, 3]
        assert torch.cat([part.rows for part in held]).sort().values.tolist() == list(range(11))
        assert all(torch.equal(part.targets, targets[part.rows]) for part in held)


@pytest.mark.filterwarnings("ignore:`data.groups`. no images of cat")
def test_group_with_the_only_images_of_a_class_in_a_fold_is_told() -> None:
    images = files(torch.tensor([0, 1] * 6 + [2, 2]), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7])
    held = [take(images, 4, fold)[1] for fold in range(1, 5)]
    without = next(fold for fold, names in enumerate(held, 1) if not {"12.png", "13.png"} & set(names))
    with pytest.warns(
        UserWarning, match=rf"^`data.groups`: no images of cat in fold {without}, as too few groups have"
    ):
        take(images, 4, without)


@pytest.mark.parametrize(
    ("targets", "groups", "message"),
    [
        ([0] * 9 + [1] * 3, None, "5 needs as many images of each class, and 'bee' has 3 to train and validate on; "
         "give at most 3, add images, or leave the class out"),
        ([0] * 9 + [1], None, "5 needs as many images of each class, and 'bee' has 1 to train and validate on; add "
         "images, or leave the class out"),
        ([0, 1] * 6, [row // 3 for row in range(12)], "5 needs as many groups of data.groups, and there are 4; give at "
         "most 4, or add groups"),
        ([0, 1] * 6, [7] * 12, "5 needs as many groups of data.groups, and there are 1; add groups"),
        ([0, 1] * 5 + [2, 2], [*range(10), 10, 10], "all images of cat are in one group of data.groups, which would be "
         "held out whole; add groups, or leave the class out"),
        ([0, 1, 2] * 4, list(range(12)), "5 needs as many images of the largest class; give at most 4, or add images"),
    ],
)  # fmt: skip
def test_images_that_are_too_few_for_so_many_folds_are_refused(
    targets: list[int], groups: list[int] | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        take(files(torch.tensor(targets), groups), 5, 1)
    assert str(caught.value) == f"data.folds: {message}"


def test_images_without_classes_need_one_for_each_fold() -> None:
    images = ArraySplit.whole(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, 1))
    with pytest.raises(
        UserError, match=r"^data.folds: 5 needs as many images to train and validate on, and there are 3;"
    ):
        take_fold(images, 5, 1, 0, NAMES)


def test_folds_that_whole_groups_leave_without_a_class_to_train_on_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images = files(torch.tensor([0, 1] * 6 + [2, 2]), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7])
    uneven = torch.tensor([[0, 0, 1, 1] * 3 + [1, 1]])
    monkeypatch.setattr("lit_ft.data.folds.make_folds", lambda *_: uneven)
    with pytest.raises(
        UserError, match=r"^data.folds: all groups of data.groups with images of cat are in fold 2; give"
    ):
        take(images, 2, 1)
    with pytest.raises(UserError, match=r"^data.folds: fold 3 of 3 has no group of data.groups; give another data.spl"):
        take(replace(images, targets=torch.arange(14) % 2), 3, 1)


@pytest.mark.parametrize(
    ("folds", "fold", "message"),
    [
        (1, None, "data.folds: 1 is less than 2"),
        (None, 2, "data.fold: 2 of how many? Give data.folds 5"),
        (5, 0, "data.fold: 0 is not between 1 and 5, the number of data.folds"),
        (5, 6, "data.fold: 6 is not between 1 and 5"),
    ],
)
def test_numbers_that_cannot_be_are_refused(folds: int | None, fold: int | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_folds(folds, fold)
    assert str(caught.value).startswith(message)


def test_the_fold_must_be_named() -> None:
    with pytest.raises(
        UserError, match=r"^data.fold: is missing; give which of the 5 folds is held out, 1 to 5, or hold"
    ):
        take_fold(files(torch.tensor([0, 1] * 6)), 5, None, 0, NAMES)
