import shutil

import numpy as np
import pytest
import torch
from image_files import save_photo
from small_runs import FewDigits

from lit_ft.data import ImageFolderDataModule, ImageTableDataModule
from lit_ft.data.fingerprint import difference

NAMES = ["ant", "bee", "cat"]
NUM_TRAIN, NUM_VAL = 6, 3


@pytest.fixture
def split_root(tmp_path):
    """Photos that are called alike in each class, with noise in them, in train and val."""
    random = np.random.default_rng(0)
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for name in NAMES:
            for i in range(count):
                color = tuple(int(value) for value in random.integers(0, 256, 3))
                save_photo(tmp_path / "photos" / split / name / f"{i}.png", color)
    return tmp_path / "photos"


def of_folder(root, **options):
    data = ImageFolderDataModule(str(root), num_workers=0, **options)
    data.setup()
    return data.fingerprint()


def swap(one, other):
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def test_same_images_elsewhere_have_the_same_fingerprint(split_root, tmp_path):
    before = of_folder(split_root)
    shutil.copytree(split_root, tmp_path / "copy")
    assert of_folder(tmp_path / "copy") == before
    assert [[count for count, _ in split] for split in before["splits"].values()] == [[NUM_TRAIN] * 3, [NUM_VAL] * 3]
    torch.save(before, tmp_path / "saved")
    assert torch.load(tmp_path / "saved", weights_only=True) == before
    assert difference(before, before, NAMES) is None


def drop(root):
    (root / "train" / "bee" / "3.png").unlink()


def move(root):
    (root / "train" / "bee" / "3.png").rename(root / "val" / "bee" / "moved.png")


def rename(root):
    (root / "val" / "cat" / "1.png").rename(root / "val" / "cat" / "new.png")


def swap_classes(root):
    for split in ("train", "val"):
        swap(root / split / "ant", root / split / "cat")


def remove_val(root):
    shutil.rmtree(root / "val")
    save_photo(root / "test" / "ant" / "0.png", (1, 2, 3))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop, "with 9 images of bee, but now there are 8"),
        (move, "with 6 images of bee in train, but now there are 5"),
        (rename, "with other images of cat"),
        (swap_classes, "in which ant and cat were the other way round"),
    ],
)
def test_change_of_the_images_is_told(split_root, change, told):
    before = of_folder(split_root)
    change(split_root)
    assert difference(before, of_folder(split_root), NAMES) == told


@pytest.mark.filterwarnings("ignore:.*no images of")
def test_split_that_is_gone_is_told(split_root):
    before = of_folder(split_root)
    remove_val(split_root)
    after = of_folder(split_root)
    assert difference(before, {**after, "splits": {key: after["splits"][key] for key in ("train", "test")}}, NAMES) == (
        "with images for train, val, but now there are some for train, test"
    )


def test_names_of_two_folders_that_are_swapped_are_told(split_root, tmp_path):
    for number, names in enumerate([("ant", "bee", "cat"), ("bee", "ant", "cat")]):
        text = "\n".join(f"{folder}: the {name}" for folder, name in zip(NAMES, names, strict=True))
        (tmp_path / f"{number}.yaml").write_text(text)
    found = [of_folder(split_root, class_names_from=str(tmp_path / f"{number}.yaml")) for number in (0, 1)]
    told = difference(*found, ["the ant", "the bee", "the cat"])
    assert told == "in which the ant and the bee were the other way round"


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_of_a_table_are_told(split_root, tmp_path, task):
    def fingerprint(cell):
        rows = [f"train/ant/{i}.png,{cell if i == 2 else i % 2},{(i + 1) % 2}" for i in range(NUM_TRAIN)]
        (tmp_path / "table.csv").write_text("\n".join(["path,x,y", *rows]))
        columns = {"table": str(tmp_path / "table.csv"), "label_columns": ["x", "y"], "root": str(split_root)}
        data = ImageTableDataModule(**columns, task=task, val_fraction=0.2, num_workers=0)
        data.setup()
        return data.fingerprint()

    assert difference(fingerprint(0), fingerprint(1), ["x", "y"]) == "with other images"
    assert difference(fingerprint(0), fingerprint(0), ["x", "y"]) is None


def test_other_choice_of_images_that_are_read_into_memory_is_told():
    found = []
    for options in ({"split_seed": 0}, {"split_seed": 1}, {"shots": 3}):
        data = FewDigits(**options)
        data.setup()
        found.append(data.fingerprint())
    names = data.class_names
    counts = [sum(classes[0][0] for classes in one["splits"].values()) for one in found]
    told = f"with {counts[0]} images of 0, but now there are {counts[2]}"
    assert difference(found[0], found[2], names) == told
    assert difference(found[0], found[1], names) is not None
