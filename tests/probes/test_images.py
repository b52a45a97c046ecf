"""Images of train and val together, their folds and copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from probe_sets import read_photos, write_photos

from lit_ft import DigitsDataModule
from lit_ft.data.checks import check_data
from lit_ft.errors import UserError
from lit_ft.probes.images import join_copies, read_images


def copied(tmp_path: Path) -> Path:
    root = write_photos(tmp_path / "photos", {"dots": 12, "lines": 12})
    for i in range(3):
        shutil.copy(root / "dots" / "000.png", root / "dots" / f"copy{i}.png")
    return root


def test_images_of_train_come_before_those_of_val_and_test_is_left_out(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 20, "lines": 20}), test_fraction=0.25, val_fraction=0.25)
    assert [(name, len(split)) for name, split in images.splits.items()] == [("train", 20), ("val", 10)]
    assert [sample.split for sample in images.samples] == ["train"] * 20 + ["val"] * 10
    names = [("dots", "lines")[label] for label in images.targets.values.tolist()]
    assert [sample.label for sample in images.samples] == names
    assert [Path(sample.path).parent.name for sample in images.samples] == names


def test_copies_are_in_one_fold_and_count_as_one_image(tmp_path: Path) -> None:
    images = read_photos(copied(tmp_path))
    same = [row for row, sample in enumerate(images.samples) if "copy" in sample.path or "dots/000" in sample.path]
    assert images.copies[same].tolist() == [same[0]] * 4
    assert images.num_copies == 3
    folds = images.fold()
    assert folds.shape == (4, 27)
    assert (folds[:, same] == folds[:, same[:1]]).all()
    assert [sorted(torch.bincount(one[images.firsts]).tolist()) for one in folds] == [[4, 5, 5, 5, 5]] * 4


def test_copies_are_found_again_without_reading_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copied(tmp_path)
    first = read_photos(root).copies
    monkeypatch.setattr(check_data, "inspect_file", None)
    assert torch.equal(read_photos(root).copies, first)


def test_groups_and_copies_are_joined_in_folds(tmp_path: Path) -> None:
    root = copied(tmp_path)
    images = read_photos(root, groups="([0-9])[.]png")  # ten groups, and copies of them
    assert images.groups is not None
    joined = join_copies(images.groups, images.copies)
    for one in images.fold():
        folds_of = {(group, fold) for group, fold in zip(joined.tolist(), one.tolist(), strict=True)}
        assert len(folds_of) == len(set(joined.tolist()))


def test_classes_in_few_groups_are_named_and_nothing_warns(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"dots": 20, "lines": 20})
    for i in range(20):  # of two groups
        (root / "lines" / f"{i:03}.png").rename(root / "lines" / f"{i:03}-{i % 2}.png")
    with pytest.warns(UserWarning, match="no images of lines in val"):  # of the data module alone
        images = read_photos(root, groups="([0-9])[.]png")
    assert images.classes_in_few_groups(5) == ["lines"]
    assert images.classes_in_few_groups(2) == []
    assert images.fold().max() == 4


def test_folds_are_fewer_where_the_smallest_class_has_fewer_images(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 3, "lines": 12}))
    assert images.num_folds() == 3
    assert images.fold().max() == 2


def test_large_sets_are_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 12, "lines": 12}))
    for large, repeats in ((96, 4), (95, 3), (10, 1)):
        monkeypatch.setattr("lit_ft.probes.images._LARGE", large)
        assert images.repeats == len(images.fold()) == repeats


def test_copies_do_not_count_for_the_number_of_folds(tmp_path: Path) -> None:
    root = write_photos(tmp_path, {"dots": 2, "lines": 12})
    for i in range(4):
        shutil.copy(root / "dots" / "000.png", root / "dots" / f"copy{i}.png")
    assert read_photos(root).num_folds() == 2


def test_too_few_images_are_one_line(tmp_path: Path) -> None:
    shutil.copytree(write_photos(tmp_path / "train", {"dots": 1, "lines": 1}), tmp_path / "val")
    with pytest.raises(UserError, match="data: cross-validation needs two images of a class at least, without copies"):
        read_photos(tmp_path).fold()


def test_other_data_modules_are_refused() -> None:
    with pytest.raises(UserError, match=r"data: lit-ft probe takes photos .*, not LightningDataModule"):
        read_images(L.LightningDataModule())


def test_thumbnails_are_of_files_and_of_memory(tmp_path: Path) -> None:
    images = read_photos(write_photos(tmp_path, {"dots": 5, "lines": 5}))
    assert len({images.thumbnail(row) for row in range(10)} - {""}) == 10
    digits = read_images(DigitsDataModule(shots=2))
    assert digits.thumbnail(0) != digits.thumbnail(len(digits) - 1) != ""
