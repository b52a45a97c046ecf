import csv
import json
import os
import shutil
import warnings

import pytest
import torch
from image_files import save_photo

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageFolderDataModule
from lit_ft.errors import UserError

SPEC = InputSpec(size=16, resize=20)


def make(root, **options):
    data = ImageFolderDataModule(str(root), num_workers=0, spec=SPEC, **options)
    data.setup()
    return data


@pytest.fixture
def split_root(photo_root, tmp_path):
    """The photos as train/, and one of each class in val/ and test/."""
    root = tmp_path / "split"
    shutil.copytree(photo_root, root / "train")
    for split in ("val", "test"):
        for name in ("ant", "bee", "cat"):
            shutil.copytree(photo_root / name, root / split / name, ignore=lambda _, names: sorted(names)[1:])
    return root


def paths_of(data, split):
    return {str(p) for p in data.splits[split].paths}


def test_one_folder_is_split_in_proportion(photo_root):
    data = make(photo_root, val_fraction=0.2, test_fraction=0.3)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.counts() == {"train": [5] * 3, "test": [3] * 3, "val": [2] * 3}
    splits = [paths_of(data, s) for s in ("train", "val", "test")]
    assert len(set.union(*splits)) == 30 == sum(map(len, splits))


def test_split_depends_on_the_split_seed_alone(photo_root):
    val = [paths_of(make(photo_root, split_seed=seed), "val") for seed in (0, 0, 1)]
    assert val[0] == val[1] != val[2]


def test_folders_of_their_own_are_used(split_root):
    data = make(split_root, test_fraction=0.3)
    assert data.counts() == {"train": [10] * 3, "val": [1] * 3, "test": [1] * 3}


def test_missing_val_is_split_off_from_train(split_root):
    shutil.rmtree(split_root / "val")
    assert make(split_root, val_fraction=0.2).counts() == {"train": [8] * 3, "test": [1] * 3, "val": [2] * 3}


def test_images_and_targets_belong_together(photo_root):
    data = make(photo_root, augment="none", batch_size=8)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for images, targets in loader:
            assert images.shape[1:] == (3, 16, 16)
            assert (images.dtype, targets.dtype) == (torch.uint8, torch.int64)
            # ants are red, bees green, cats blue
            assert images.float().mean((2, 3)).argmax(1).equal(targets)


def test_class_names_are_known_before_setup_and_from_train_only(split_root):
    data = ImageFolderDataModule(str(split_root))
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.num_classes == 3


def test_classes_of_other_splits_are_matched_by_name(split_root):
    shutil.rmtree(split_root / "val" / "ant")
    with pytest.warns(UserWarning, match=r"val: no images of: ant"):
        data = make(split_root)
    assert data.counts()["val"] == [0, 1, 1]
    assert torch.cat([y for _, y in data.val_dataloader()]).tolist() == [1, 2]


def test_unknown_class_in_another_split(split_root):
    save_photo(split_root / "val" / "bees" / "1.png")
    with pytest.raises(UserError, match=r"^data.root: unknown class of the val images 'bees'; nearest: bee"):
        make(split_root)


def test_class_without_images(photo_root):
    (photo_root / "dog").mkdir()
    with pytest.raises(UserError, match=r"^data.root: no images in .*photos/dog$"):
        make(photo_root)


@pytest.mark.parametrize("name", ["bee ", " bee", "bee\n"])
def test_class_that_a_table_would_take_for_another(photo_root, name):
    (photo_root / "ant").rename(photo_root / name)
    with pytest.raises(UserError, match=r"^data.root: the class '.*bee.*' begins or ends with a space; rename it"):
        make(photo_root)


def test_images_in_no_class_folder_are_told(photo_root):
    for i in range(3):
        save_photo(photo_root / f"{i}.png")
    with pytest.warns(
        UserWarning, match=rf"^`data.root`: 3 images not used, as in no class folder, but in {photo_root} itself"
    ):
        data = make(photo_root)
    assert data.sizes() == {"train": 24, "val": 6}


def test_folders_beside_the_splits_are_told(split_root):
    for name in ("extra", "more", ".git"):
        save_photo(split_root / name / "ant" / "0.png")
    with pytest.warns(
        UserWarning, match=rf"^`data.root`: not used, as neither train, val nor test: extra, more in {split_root}$"
    ):
        make(split_root)


def test_folders_without_anything_beside_are_not_warned_of(split_root, recwarn):
    make(split_root)
    assert not [str(w.message) for w in recwarn if "not used" in str(w.message)]


def test_without_test_images_validation_is_tested_on_and_said_so(photo_root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = make(photo_root)
        data.train_dataloader()
    with pytest.warns(UserWarning, match=r"the validation images are tested on; .*data.test_fraction") as told:
        loader = data.test_dataloader()
    assert len(told) == 1
    assert torch.cat([y for _, y in loader]).tolist() == [0, 0, 1, 1, 2, 2]
    assert "test" not in data.counts()


def test_all_photos_are_tested_by_a_model_of_more_classes(split_root, photo_root):
    for root, folder in ((split_root, split_root / "test"), (photo_root, photo_root)):
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        with pytest.warns(UserWarning, match="no images of: aardvark"):
            data = make(root, tested_classes=["aardvark", *reversed(names)], shots=1)
        assert data.class_names == ["aardvark", *reversed(names)]
        test = data.splits["test"]
        found = {(str(path), data.class_names[k]) for path, k in zip(test.paths, test.targets.tolist(), strict=True)}
        assert found == {(str(p), p.parent.name) for name in names for p in (folder / name).iterdir()}
        assert len(data.splits["train"]) == 0


def test_folder_to_test_needs_known_classes_and_a_place(split_root):
    shutil.rmtree(split_root / "test")
    with pytest.raises(UserError, match="has train and no test; name the folder that has the class folders"):
        make(split_root, tested_classes=["a", "b"])
    with pytest.raises(UserError, match="class of the test images"):
        make(split_root / "train", tested_classes=["a", "b"])


def test_predict_takes_a_folder_a_file_or_the_test_images(photo_root, tmp_path):
    save_photo(tmp_path / "new" / "deep" / "b.PNG", (0, 0, 250))
    save_photo(tmp_path / "new" / "a.bmp", (250, 0, 0))
    data = make(photo_root, predict=str(tmp_path / "new"))
    [(images, indices)] = data.predict_dataloader()
    assert [data.predict_paths[i] for i in indices] == [str(tmp_path / "new/a.bmp"), str(tmp_path / "new/deep/b.PNG")]
    assert images.float().mean((2, 3)).argmax(1).tolist() == [0, 2]

    one = make(photo_root, predict=str(tmp_path / "new" / "a.bmp"))
    assert one.predict_paths == [str(tmp_path / "new/a.bmp")]
    assert len(make(photo_root).predict_paths) == 6


def test_predict_of_nothing(photo_root, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"^data.predict: no images in .*none$"):
        make(photo_root, predict=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^data.predict: .*photo does not exist; nearest: photos"):
        make(photo_root, predict=str(tmp_path / "photo"))


def test_augmentation_is_for_training_alone(photo_root):
    data = make(photo_root)
    data.order_seed = 0
    plain, again = (next(iter(data.val_dataloader()))[0] for _ in range(2))
    assert plain.equal(again)
    assert type(data.train_dataloader().source._loader.dataset.transform.transforms[0]).__name__ == "RandomResizedCrop"


def test_size_above_resize(photo_root):
    data = ImageFolderDataModule(str(photo_root), spec=InputSpec(size=300, resize=256))
    with pytest.raises(UserError, match=r"^data.spec.resize: 256 is less than data.spec.size, 300"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.5}, "data.val_fraction: 1.5 is not a fraction between 0 and 1"),
        ({"test_fraction": -0.1}, "data.test_fraction: -0.1 is not a fraction at least 0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "data.test_fraction: 0.5 and data.val_fraction 0.5 leave"),
        ({"num_workers": -1}, "data.num_workers: -1 is less than 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        ImageFolderDataModule("nowhere", **options)


def test_too_few_images_to_split(tmp_path):
    for name in ("ant", "bee"):
        for i in range(2):
            save_photo(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match=r"^data.val_fraction: 1 of 4 images of 2 classes \(the smallest has 2\)"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (["one"], {}, "data.val_fraction: the class 'one' has one image, and two are needed, one to train on and one "
         "for val; add images, or leave the class out$"),
        (["one", "solo"], {}, "data.val_fraction: the classes one, solo have one image, and two are needed"),
        (["one"], {"test_fraction": 0.2}, "data.test_fraction: the class 'one' has one image, .* one for test; add"),
    ],
)  # fmt: skip
def test_class_with_one_image_is_named(photo_root, classes, options, message):
    for name in classes:
        save_photo(photo_root / name / "1.png")
    with pytest.raises(UserError, match=f"^{message}"):
        make(photo_root, **options)


@pytest.mark.parametrize("name", ["valid", "Val", "Train", "validation", "TEST"])
def test_folder_that_is_meant_for_a_split_is_not_taken_for_a_class(photo_root, name):
    (photo_root / name).mkdir()
    with pytest.raises(
        UserError, match=rf"has {name}; call the folders of splits train, val and test, and a class otherwise$"
    ):
        _ = ImageFolderDataModule(str(photo_root)).class_names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train", "has ant, bee, cat beside train, which has no class folders; if train is a class, rename it, else"),
        ("val", r"has val beside ant, bee, cat but no train; move the class folders into .*/train, or, if val is a cl"),
        ("test", "has test beside ant, bee, cat but no train; move the class folders"),
    ],
)
def test_class_that_is_called_as_a_split(photo_root, name, message):
    save_photo(photo_root / name / "1.png")
    with pytest.raises(UserError, match=rf"^data.root: {photo_root} {message}"):
        _ = ImageFolderDataModule(str(photo_root)).class_names


def test_test_and_val_without_train(split_root):
    shutil.rmtree(split_root / "train")
    with pytest.raises(UserError, match=r"has test and val and no train; move"):
        make(split_root)


@pytest.mark.parametrize("place", ["", "unknown"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_split_without_labels_is_told_and_not_used(split_root, place, split):
    """As of a competition, whose answers are not given."""
    shutil.rmtree(split_root / split)
    for i in range(3):
        save_photo(split_root / split / place / f"{i}.png")
    told = rf"3 images not used, as {split_root / split} has no folders of the classes; to predict them: `data.predict`"
    with pytest.warns(UserWarning, match=told):
        data = make(split_root)
    assert (
        data.counts()
        == {
            "val": {"train": [8] * 3, "val": [2] * 3, "test": [1] * 3},
            "test": {"train": [10] * 3, "val": [1] * 3},
        }[split]
    )


def test_class_folder_whose_name_is_no_text(photo_root):
    (photo_root / "ant").rename(photo_root / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UserError, match=r"^data.root: the name of the class folder b'caf\\xe9' is not in UTF-8; ren"):
        make(photo_root)


TOOLS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".ipynb_checkpoints", "System Volume Information")


@pytest.mark.parametrize("name", TOOLS)
def test_what_tools_leave_behind_is_no_class_and_no_image(photo_root, recwarn, name):
    save_photo(photo_root / name / "a.jpg")
    save_photo(photo_root / "ant" / name / "0.png" / "SYNOPHOTO_THUMB_XL.jpg")
    (photo_root / "ant" / "Thumbs.db").touch()
    data = make(photo_root)
    assert data.class_names == ["ant", "bee", "cat"]
    assert data.sizes() == {"train": 24, "val": 6}
    assert make(photo_root, predict=str(photo_root)).splits["predict"].targets.tolist() == list(range(30))
    assert not [w for w in recwarn if "not used" in str(w.message)]


def test_what_is_passed_over_is_counted_in_one_line_for_training_and_for_prediction(split_root):
    for place, name in (("train/ant", "a.txt"), ("train/bee", "b.TXT"), ("val/cat", "c.psd"), ("test", "noise")):
        (split_root / place / name).write_bytes(b"8BPS")
    told = (
        rf"^`data.root`: 4 file\(s\) below {split_root} are no images, and not used: 2 .txt, 1 without a suffix, 1 .psd"
    )
    with pytest.warns(UserWarning, match=told) as warned:
        make(split_root)
    assert len(warned) == 1
    told = rf"^`data.predict`: 2 file\(s\) below {split_root}/train are no images, and not used: 2 .txt$"
    with pytest.warns(UserWarning, match=told) as warned:
        ImageFolderDataModule(predict=str(split_root / "train"), spec=SPEC).setup("predict")
    assert len(warned) == 1


def test_whole_numbers_are_in_the_order_of_numbers(tmp_path):
    for name in ("10", "9", "007"):
        for i in range(5):
            save_photo(tmp_path / name / f"{i}.png", (int(name) * 10, 0, 0))
    data = make(tmp_path, augment="none")
    assert data.class_names == ["007", "9", "10"]
    for images, targets in data.val_dataloader():
        assert (images.float().amax((1, 2, 3)) / 10).round().tolist() == [[7, 9, 10][k] for k in targets]
    (tmp_path / "10").rename(tmp_path / "x")
    assert make(tmp_path).class_names == ["007", "9", "x"]


NAMES = {"ant": "Zebra", "bee": "no", "cat": "007"}
FILES = {
    "names.json": json.dumps(NAMES),
    "names.yaml": "ant: Zebra\nbee: no\ncat: 007\n",
    "names.csv": "folder,class\nant,Zebra\nbee,no\ncat,007\n",
    "names.tsv": "class\tfolder\n007\tcat\nZebra\tant\nno\tbee\n",
}


@pytest.mark.parametrize("name", FILES)
def test_classes_are_called_as_a_file_says(split_root, tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    data = make(split_root, class_names_from=str(tmp_path / name), augment="none", batch_size=8)
    assert data.class_names == ["007", "Zebra", "no"]
    for images, targets in (*data.train_dataloader(), *data.test_dataloader()):
        # of cats, which are blue, ants and bees
        assert torch.tensor([2, 0, 1])[targets].equal(images.float().mean((2, 3)).argmax(1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"ant": "a", "bees": "b", "cat": "c"}, "unknown class folder 'bee'; nearest: bees"),
        ({**NAMES, "dog": "d", "eel": "e"}, "names dog and 1 others, but there is no such class folder; leave it out"),
        ({**NAMES, "cat": "no"}, "gives bee and cat one name, 'no'; tell them apart"),
        ({**NAMES, "cat": ["c"]}, "must have one name for each folder"),
        ({**NAMES, "cat": ""}, "must have one name for each folder"),
        ([1], "must have one name for each folder"),
        ("{", r"cannot be read \(Expecting property name"),
    ],
)
def test_mistakes_in_a_file_of_names(photo_root, tmp_path, text, message):
    path = tmp_path / "names.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(UserError, match=rf"^data.class_names_from: {path}:? {message}"):
        make(photo_root, class_names_from=str(path))


@pytest.mark.parametrize("name", FILES)
def test_folder_with_two_names_is_refused_and_one_that_is_named_again_is_not(photo_root, tmp_path, name):
    path, (row,) = (
        tmp_path / name,
        (line for line in (FILES[name] + "\n").splitlines() if "bee" in line and "no" in line),
    )
    again = row if name != "names.json" else '"bee": "no"'
    other = again.replace("no", "yes")
    for text, names in ((again, ["007", "Zebra", "no"]), (other, None)):
        end = f", {text}}}" if name == "names.json" else f"{text}\n"
        path.write_text(FILES[name].removesuffix("}") + end)
        if names:
            assert make(photo_root, class_names_from=str(path)).class_names == names
            continue
        with pytest.raises(
            UserError, match=rf"^data.class_names_from: {path} gives bee two names, 'no' and 'yes'; leave"
        ):
            make(photo_root, class_names_from=str(path))


def test_file_of_names_without_a_name(photo_root, tmp_path):
    (tmp_path / "n.csv").write_text("folder,class\nant,a\nbee,\ncat,c\n")
    with pytest.raises(UserError, match=r"^data.class_names_from: .*n.csv must have one name for each folder"):
        make(photo_root, class_names_from=str(tmp_path / "n.csv"))


def test_file_of_names_that_is_not_there(photo_root, tmp_path):
    with pytest.raises(UserError, match=r"^data.class_names_from: .*names.yml does not exist"):
        make(photo_root, class_names_from=str(tmp_path / "names.yml"))
    (tmp_path / "n.csv").write_text("n01440764,tench\nx,y\n")
    with pytest.raises(UserError, match=r"^data.class_names_from: unknown column of .*n.csv 'folder'"):
        make(photo_root, class_names_from=str(tmp_path / "n.csv"))


@pytest.mark.parametrize("pattern", ["([0-9])", "[0-9](?=.png)", r"ant/(\d)|bee/(\d)|(x)?(\d)"])
def test_images_of_a_group_stay_together(photo_root, pattern):
    data = make(photo_root, groups=pattern, test_fraction=0.3)
    assert data.counts() == {"train": [5] * 3, "test": [3] * 3, "val": [2] * 3}
    numbers = [{path[-5] for path in paths_of(data, split)} for split in ("train", "val", "test")]
    assert list(map(len, numbers)) == [5, 2, 3]
    assert len(set.union(*numbers)) == 10


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"\( is not a regular expression \(missing"),
        ("ant/(.)", "ant/.* is not found in 20 of 30 paths, such as bee/0.png, bee/1.png, bee/2.png; change it"),
        ("[0-9]+(x)?", r"\[0-9\].* is not found in 30 of 30 paths, such as ant/0.png, "),
        ("bee/(.)|(cat)|ant", "bee/.* is not found in 10 of 30 paths, such as ant/0.png, "),
        ("x*", "x.* is not found in 30 of 30 paths, such as ant/0.png, "),
    ],
)
def test_patterns_of_groups_that_do_not_fit(photo_root, pattern, message):
    with pytest.raises(UserError, match=f"^data.groups: {message}"):
        make(photo_root, groups=pattern)


def test_group_in_two_folders_is_refused(split_root):
    with pytest.raises(UserError, match=r"^data.groups: group '0' is both in train and in val; move all its images"):
        make(split_root, groups="([0-9])")


def test_folds_are_of_the_images_of_train_and_val_and_test_stays_apart(split_root):
    given = make(split_root)
    tested, rest = paths_of(given, "test"), paths_of(given, "train") | paths_of(given, "val")
    folds = [make(split_root, folds=5, fold=fold) for fold in range(1, 6)]
    assert [len(data.splits["val"]) for data in folds] == [7, 7, 7, 6, 6]  # 11 images of each class
    assert set.union(*(paths_of(data, "val") for data in folds)) == rest
    for data in folds:
        assert paths_of(data, "train") == rest - paths_of(data, "val")
        assert paths_of(data, "test") == tested
        assert {len(os.path.relpath(path, split_root).split("/")) for path in paths_of(data, "train")} == {3}


def test_test_images_are_held_out_before_folds(photo_root):
    folds = [make(photo_root, folds=2, fold=fold, test_fraction=0.2, groups="([0-9])") for fold in (1, 2)]
    assert [data.counts()["test"] for data in folds] == [[2] * 3] * 2
    assert paths_of(folds[0], "test") == paths_of(folds[1], "test")
    assert paths_of(folds[0], "train") == paths_of(folds[1], "val")
    numbers = [{path[-5] for path in paths_of(folds[0], split)} for split in ("train", "val", "test")]
    assert list(map(len, numbers)) == [4, 4, 2]
    assert len(set.union(*numbers)) == 10


def test_group_in_the_folders_of_train_and_val_is_in_one_fold(split_root):
    shutil.rmtree(split_root / "test")
    data = make(split_root, folds=2, fold=1, groups="([0-9])")
    assert not {p[-5] for p in paths_of(data, "train")} & {p[-5] for p in paths_of(data, "val")}


def test_shots_are_of_the_images_that_are_trained_on(photo_root):
    assert make(photo_root, folds=2, fold=1, shots=3).counts() == {"train": [3] * 3, "val": [5] * 3}


def test_class_whose_group_is_in_training_alone_is_told(photo_root):
    for path in (photo_root / "ant").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.warns(UserWarning, match=r"^`data.groups`: no images of ant in val, as too few groups have any"):
        data = make(photo_root, groups="x|[0-9]")
    assert data.counts()["train"][0] == 10


def test_paths_that_are_no_text_are_written(photo_root, tmp_path):
    name = os.fsdecode(b"\xff,\n.png")
    (photo_root / "ant" / "0.png").rename(photo_root / "ant" / name)
    make(photo_root).write_split(tmp_path / "split.csv")
    with open(tmp_path / "split.csv", newline="", errors="surrogateescape") as file:
        assert str(photo_root / "ant" / name) in [row[0] for row in csv.reader(file)]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize("split", ["train", "val"])
def test_name_in_two_forms_of_unicode_is_told(split_root, split):
    shutil.copytree(split_root / "train" / "ant", split_root / "train" / COMPOSED)
    shutil.copytree(split_root / "train" / "ant", split_root / split / DECOMPOSED)
    forms = r"'cafe\\u0301' and 'caf\\xe9'" if split == "train" else r"'caf\\xe9' and 'cafe\\u0301'"
    text = f"data.root: the class 'caf.+' comes in two forms of Unicode, {forms}, which look the same; use one of them"
    with pytest.raises(UserError, match=f"^{text}$"):
        ImageFolderDataModule(str(split_root), num_workers=0).setup()


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["\ufb01sh", "fish"], "the classes 'fish' and '\ufb01sh' differ in the form of characters alone"),
        (["NaN", "fish"], "'NaN' is taken for a class; if it stands for a missing label, remove those images"),
    ],
)
def test_names_that_may_not_be_meant_are_warned_of(photo_root, tmp_path, names, text):
    for name in names:
        shutil.copytree(photo_root / "ant", tmp_path / "named" / name)
    with pytest.warns(UserWarning, match=f"^`data.root`: {text}$"):
        assert sorted(ImageFolderDataModule(str(tmp_path / "named")).class_names) == sorted(names)


def test_images_to_predict_are_found_without_training_images_which_a_later_fit_reads(photo_root, tmp_path):
    shutil.copytree(photo_root / "ant", tmp_path / "new")
    own = {"predict": str(tmp_path / "new"), "shots": 2}
    data = ImageFolderDataModule(str(photo_root / "none"), num_workers=0, spec=SPEC, **own)
    data.setup("predict")
    assert [len(index) for _, index in data.predict_dataloader()] == [10]
    assert data.sizes() == {}
    data.root = str(photo_root)
    data.setup("fit")
    assert data.sizes() == {"train": 6, "val": 6}
    assert sum(len(targets) for _, targets in data.train_dataloader()) == 6
    data.write_split(tmp_path / "split.csv")
    assert len((tmp_path / "split.csv").read_text().splitlines()) == 1 + 30
