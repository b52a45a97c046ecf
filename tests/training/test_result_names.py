"""Names of the results of evaluations, which never replace a run's own."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from image_files import save_photo
from small_runs import FewDigits

from lit_ft import ImageFolderDataModule
from lit_ft.data import ImageTableDataModule
from lit_ft.runs import Run
from lit_ft.training.result_names import count_trained_on, describe_images, describe_rest, name_results

BEST = "checkpoints/best.ckpt"


def read(root, kind=ImageFolderDataModule, **options):
    data = kind(root, **{"test_fraction": 0.2, **options})
    data.setup("test")
    return data


def save(run, data, name="best", **content):
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    torch.save({"images": data.fingerprint(), **content}, run.checkpoint(name))


@pytest.fixture
def run(tmp_path, photo_root):
    """A run on photos, with its split and two checkpoints."""
    run, data = Run(tmp_path / "run"), read(photo_root)
    save(run, data)
    save(run, data, "last")
    data.write_split(run.split_table)
    return run


def name(run, data, split="test", checkpoint="best", known=None, limit=1.0, **trainer):
    path = str(run.checkpoint(checkpoint))
    limits = {"limit_test_batches": limit, "limit_val_batches": limit}
    return name_results(SimpleNamespace(ckpt_path=path, datamodule=data, **limits, **trainer), run, split, known or {})


def test_own_results_are_called_as_their_split_and_those_of_another_checkpoint_as_that(run, photo_root):
    data = read(photo_root)
    assert [name(run, data, split) for split in ("test", "val")] == [("test", None), ("val", None)]
    assert [name(run, data, split, "last")[0] for split in ("test", "val")] == ["test_last", "val_last"]
    run.checkpoint("best").rename(run.checkpoint("epoch=1"))  # as the user may have named it
    known = {"val": {"checkpoint": "checkpoints/epoch=1.ckpt"}}
    assert name(run, data, known=known, checkpoint="epoch=1")[0] == "test"
    assert name(run, data, known=known, checkpoint="last")[0] == "test_last"
    assert name(run, data, checkpoint="last")[0] == "test"  # as nothing says that it is another


def test_validation_images_that_a_refit_was_trained_on_do_not_replace_those_from_before(run, photo_root):
    data = read(photo_root)
    save(run, data, is_refitted=True)
    assert [name(run, data, split)[0] for split in ("test", "val")] == ["test", "val_refit"]


@pytest.mark.filterwarnings("ignore:.*images are tested")
def test_two_folders_of_one_name_have_results_of_their_own(run, photo_root, tmp_path):
    known = {"test": {"checkpoint": BEST}}
    for place, expected in (("a", "test_new"), ("b", "test_new_2"), ("a", "test_new"), ("c", "test_new_3")):
        root = tmp_path / place / ("New" if place == "c" else "new")
        for kind in ("ant", "bee"):
            save_photo(root / kind / f"{place}.png")
        data = ImageFolderDataModule(str(root), tested_classes=["ant", "bee", "cat"])
        with pytest.warns(UserWarning, match="no images of: cat"):
            data.setup("test")
        found, where = name(run, data, known=known)
        assert (found.casefold(), where) == (expected, str(root))
        known[found] = {"checkpoint": BEST, "data": where}
    assert name(run, data, "test", "last", known)[0] == "test_last_New"
    run.result_table("predictions", "test_last_New").touch()  # of somebody else
    assert name(run, data, "test", "last", known)[0] == "test_last_New_2"


def test_copy_has_the_results_of_the_run_and_photos_of_the_same_names_have_not(run, photo_root, tmp_path):
    shutil.copytree(photo_root, copy := tmp_path / "copy")
    assert name(run, read(copy))[0] == "test"
    for photo in copy.rglob("*.png"):
        save_photo(photo, (9, 9, 9))
    assert name(run, read(copy)) == ("test_copy", str(copy))


def test_other_images_of_the_same_folder_are_kept_apart(run, photo_root):
    other = read(photo_root, split_seed=5)
    assert name(run, other) == ("test_photos", str(photo_root))
    assert name(run, read(photo_root), limit=1)[0] == "test_photos"  # the first batch alone
    assert name(run, read(photo_root), limit=1, tests_own=True)[0] == "test"
    own = read(photo_root, test_fraction=0.0)
    assert name(run, own)[0] == "test_photos"  # the validation images, while the run has others
    for limit, number in ((1.0, {"images": 6}), (1, {}), (0.5, {})):
        trainer = SimpleNamespace(datamodule=own, limit_test_batches=limit)
        assert describe_images(trainer, "test") == {"split": "val", **number}
    best = str(run.checkpoint("best"))
    trained = {path for path, part in read_split(run) if part == "train"}
    tested = {str(path) for path in other.splits["test"].paths}
    assert count_trained_on(run, other, "test", best) == len(trained & tested) > 0
    assert count_trained_on(run, read(photo_root), "test", best) == 0
    save(run, data := read(photo_root), is_refitted=True)  # on those of validation, too
    untested = {path for path, part in read_split(run) if part == "test"}
    assert count_trained_on(run, other, "test", best) == len(tested - untested) > len(trained & tested)
    assert count_trained_on(run, data, "test", best) == 0


def test_validation_of_a_part_of_other_photos_says_so(photo_root):
    data = read(photo_root)
    expected = "has 30 images, of which its 6 of val are validated; lit-ft test is for all"
    assert describe_rest(data, {"images": 6}) == expected
    assert (
        describe_rest(data, {"images": 30})
        == describe_rest(data, {})
        == describe_rest(FewDigits(), {"images": 6})
        == ""
    )


def read_split(run):
    rows = [row.split(",") for row in run.split_table.read_text().splitlines()[1:]]
    return [(row[0], row[2]) for row in rows]


def test_images_that_are_left_out_as_unreadable_are_still_those_of_the_run(run, photo_root):
    tested = [Path(path) for path, part in read_split(run) if part == "test"]
    tested[0].write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read"):
        data = read(photo_root, on_bad_image="skip")
    assert len(data.splits["test"]) == 5
    assert name(run, data)[0] == "test"


def test_table_is_called_by_its_file_and_edited_split_decides_nothing(run, tmp_path):
    rows = "".join(f"{path},{Path(path).parent.name}\n" for path, part in read_split(run) if part == "train")
    (tmp_path / "t.csv").write_text(f"path,label\n{rows}")
    data = ImageTableDataModule(str(tmp_path / "t.csv"), tested_classes=["ant", "bee", "cat"])
    data.setup("test")
    assert name(run, data) == ("test_t", str(tmp_path / "t.csv"))
    assert count_trained_on(run, data, "test", str(run.checkpoint("best"))) == 18
    run.split_table.write_text("nothing\n")
    assert name(run, data) == ("test_t", str(tmp_path / "t.csv"))
    assert count_trained_on(run, data, "test", str(run.checkpoint("best"))) == 0


def test_images_in_no_file_are_known_by_their_content(tmp_path):
    run, data = Run(tmp_path), FewDigits()
    data.setup("fit")
    save(run, data)
    assert name(run, data) == ("test", None)
    other = FewDigits(num_val=30)
    other.setup("fit")
    assert [name(run, other, split) for split in ("test", "val")] == [("test", None), ("val_FewDigits", "FewDigits")]
    assert name(run, object(), "val") == ("val", None)  # of which nothing is known
