import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import noise, write_idx

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageArrayDataModule, ImageFolderDataModule
from lit_ft.data.checks.check_data import check
from lit_ft.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:there are no test images")


def labels(count, classes=3):
    return np.arange(count) % classes


def keras(**others):
    """Arrays by Keras's names; the first pixel of each image is its number."""
    arrays = {"x_train": noise(30), "y_train": labels(30), "x_test": noise(6, 1), "y_test": labels(6)}
    arrays["x_train"][:, 0, 0] = np.arange(30)
    return {**arrays, **others}


@pytest.fixture
def saved(tmp_path):
    """Saves arrays in a file, and gives the data module of it, set up."""

    def save(name="set.npz", **arrays):
        np.savez_compressed(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return save


def set_up(root, **options):
    data = ImageArrayDataModule(root=str(root), **{"spec": InputSpec(28, 28), **options})
    data.setup()
    return data


def pixels(split):
    return torch.stack([split.image(row) for row in range(len(split))])


def test_arrays_of_an_archive_are_the_splits_and_validation_is_held_out(saved):
    data = set_up(saved(**keras()), val_fraction=0.2)
    assert data.class_names == ["0", "1", "2"]
    assert data.counts() == {"train": [8, 8, 8], "val": [2, 2, 2], "test": [2, 2, 2]}
    for split in ("train", "val"):
        numbers = pixels(data.splits[split])[:, 0, 0, 0]
        assert (numbers % 3).equal(data.splits[split].targets)
    assert np.array_equal(pixels(data.splits["test"])[:, 0].numpy(), noise(6, 1))
    assert data.predict_paths[5] == "set/test/5"
    images, targets = next(iter(data.predict_dataloader()))
    assert targets.tolist() == list(range(6))
    assert np.array_equal(images[:, 0].numpy(), noise(6, 1))


def test_folds_are_of_the_arrays_of_train_and_val(saved):
    validated = noise(6, 2)
    validated[:, 0, 0] = np.arange(30, 36)
    path = saved(**keras(x_val=validated, y_val=labels(6)))
    folds = [set_up(path, folds=3, fold=fold) for fold in (1, 2, 3)]
    numbers = [pixels(data.splits["val"])[:, 0, 0, 0] for data in folds]
    assert torch.cat(numbers).sort().values.tolist() == list(range(36))
    assert torch.cat([data.splits["val"].rows for data in folds]).sort().values.tolist() == list(range(36))
    for data, held in zip(folds, numbers, strict=True):
        assert data.counts() == {"train": [8] * 3, "val": [4] * 3, "test": [2] * 3}
        assert (held % 3).equal(data.splits["val"].targets)
        assert not set(held.tolist()) & set(pixels(data.splits["train"])[:, 0, 0, 0].tolist())


def test_all_splits_are_held_out_of_arrays_without_any(saved):
    data = set_up(saved(images=noise(50), labels=labels(50, 2)), test_fraction=0.2, val_fraction=0.1)
    assert data.sizes() == {"train": 35, "test": 10, "val": 5}
    rows = torch.cat([split.rows for split in data.splits.values()])
    assert sorted(rows.tolist()) == list(range(50))


def test_medmnist_has_its_three_splits(saved):
    arrays = {}
    for split, count in (("train", 12), ("val", 6), ("test", 3)):
        arrays |= {f"{split}_images": np.tile(noise(count)[..., None], 3), f"{split}_labels": labels(count)[:, None]}
    data = set_up(saved(**arrays))
    assert data.sizes() == {"train": 12, "val": 6, "test": 3}
    assert pixels(data.splits["val"]).shape == (6, 3, 28, 28)
    assert data.basic_augment.flip  # of colour images


@pytest.mark.parametrize(("form", "flip"), [("grey", False), ("last", True), ("first", True)])
def test_all_layouts_have_the_same_pixels(saved, form, flip):
    x = noise(30)
    images = {"grey": x, "last": np.tile(x[..., None], 3), "first": np.tile(x[:, None], (1, 3, 1, 1))}[form]
    data = set_up(saved(**keras(x_train=images, x_test=images[:6])))
    assert np.array_equal(pixels(data.splits["test"])[:, -1].numpy(), x[:6])
    assert (data.basic_augment.shift, data.basic_augment.flip) == (3, flip)


def test_fractions_are_the_bytes_that_they_were_made_of(saved):
    x = noise(30)
    data = set_up(saved(**keras(x_train=x / 255, x_test=(x[:6] / 255).astype(np.float32))))
    assert np.array_equal(pixels(data.splits["test"])[:, 0].numpy(), x[:6])
    assert data.splits["train"].images.dtype == torch.uint8


def test_files_of_a_folder_are_mapped_and_not_copied(tmp_path):
    before = sorted(Path(os.environ["LIT_FT_CACHE"]).glob("images-*"))
    x = np.tile(noise(30)[..., None], 3)
    np.save(tmp_path / "x_train.npy", x)
    np.save(tmp_path / "y_train.npy", np.array(["ant", "bee", "cat"])[labels(30)])
    data = set_up(tmp_path)
    assert data.class_names == ["ant", "bee", "cat"]
    train = data.splits["train"]
    assert not train.images.is_contiguous()  # its channels come last in the file
    assert sorted(Path(os.environ["LIT_FT_CACHE"]).glob("images-*")) == before
    images, targets = next(iter(data.val_dataloader()))
    rows = data.splits["val"].rows
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), x[rows])
    assert targets.equal(data.splits["val"].targets)
    augmented = next(iter(data.train_dataloader()))[0]
    assert augmented.shape == (24, 3, 28, 28)


def test_mapped_images_are_augmented_as_others_are(tmp_path):
    x = np.tile(noise(30)[..., None], 3)
    for name, images in (("last", x), ("first", np.ascontiguousarray(x.transpose(0, 3, 1, 2)))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x_train.npy", images)
        np.save(tmp_path / name / "y_train.npy", labels(30))
    loaders = [set_up(tmp_path / name).train_dataloader() for name in ("last", "first")]
    for loader in loaders:
        loader.sampler.seed = 3
    (one, _), (other, _) = (next(iter(loader)) for loader in loaders)
    assert one.equal(other)
    assert loaders[0].source.identity() == loaders[1].source.identity()


def test_idx_files_of_mnist_are_found_gzipped_or_not(tmp_path):
    for part, count, gz in (("train", 30, True), ("t10k", 6, False)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", noise(count), gz=gz)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels(count), gz=gz)
    data = set_up(tmp_path)
    assert data.sizes() == {"train": 24, "val": 6, "test": 6}
    assert np.array_equal(pixels(data.splits["test"])[:, 0].numpy(), noise(6))


def test_pairs_that_are_named_are_taken(tmp_path):
    for name in ("letters", "digits"):
        write_idx(tmp_path / f"{name}-a-idx3-ubyte", noise(30, len(name)), gz=True)
        write_idx(tmp_path / f"{name}-b-idx1-ubyte", labels(30))
    data = set_up(tmp_path, train=["digits-a", "digits-b"], val=["letters-a", "letters-b"])
    assert data.sizes() == {"train": 30, "val": 30}
    assert np.array_equal(pixels(data.splits["train"])[:, 0].numpy(), noise(30, 6))
    assert np.array_equal(pixels(data.splits["val"])[:, 0].numpy(), noise(30, 7))


@pytest.mark.parametrize("place", ["option", "array", "file"])
def test_classes_are_named_by_an_option_an_array_or_a_file_beside(saved, tmp_path, place):
    options = {"classes": ["ant", "bee", "cat"]} if place == "option" else {}
    others = {"class_names": np.array(["ant", "bee", "cat"])} if place == "array" else {}
    if place == "file":
        (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n\n")
    assert set_up(saved(**keras(**others)), **options).class_names == ["ant", "bee", "cat"]


def test_archive_is_unpacked_once_and_again_when_it_changes(saved, monkeypatch):
    path = saved(**keras())
    set_up(path)
    calls = []
    unpack = "lit_ft.data.modules.array_files.to_bytes"
    real = __import__("lit_ft.data.arrays.pixels", fromlist=["to_bytes"]).to_bytes
    monkeypatch.setattr(unpack, lambda *given: calls.append(given[2]) or real(*given))
    first = pixels(set_up(path).splits["test"])
    assert calls == []
    saved(**keras(x_test=noise(6, 9)))
    assert not pixels(set_up(path).splits["test"]).equal(first)
    assert len(calls) == 2


def test_several_labels_an_image_and_numbers_are_targets(saved):
    y = np.stack([labels(30, 2), labels(30, 3) > 0], axis=1)
    data = set_up(saved(x=noise(30), y=y), task="multilabel", classes=["red", "round"])
    assert data.class_names == ["red", "round"]
    assert data.counts()["train"] == data.splits["train"].targets.sum(dim=0).tolist()
    numbers = set_up(saved(x=noise(30), y=np.linspace(0, 1, 30)), task="regression")
    assert (numbers.class_names, numbers.train_targets().dtype) == (["target"], torch.float64)


BAD = {
    "labels before images": (
        {"arr_0": labels(30), "arr_1": noise(30)},
        r"set.npz: arr_0 \(30,\) looks like labels, and arr_1 \(30, 28, 28\) like images; name them the other way "
        r"round: data.train \[arr_1,arr_0\]",
    ),
    "labels of another length": (
        keras(y_train=labels(29)),
        "set.npz: y_train has 29 labels for the 30 images of",
    ),
    "label without dimensions": (keras(y_train=np.array(3)), "set.npz: y_train has 1 labels for the 30 images"),
    "one class": (keras(y_train=np.zeros(30)), "set.npz: y_train has one class only, '0'"),
    "no images": (keras(x_train=noise(0), y_train=labels(0)), r"set.npz: y_train is empty, its shape is \(0,\)"),
    "NaN": (keras(x_train=np.full((30, 9, 9), np.nan), x_test=noise(6)[:, :9, :9]), "x_train has values that are no n"),
    "NaN in labels": (keras(y_train=np.full(30, np.nan)), "set.npz: y_train has no number for 30 images"),
    "16 bits": (keras(x_train=noise(30).astype(np.uint16)), "set.npz: x_train is of type uint16; images are uint8"),
    "other sizes": (
        keras(x_test=noise(6)[:, :14]),
        "images of .*x_test are 1 x 14 x 28, and those of .*x_train 1",
    ),
    "flat": (keras(x_train=noise(30).reshape(30, -1)), r"set.npz: x_train is of shape \(30, 784\); images are"),
    "objects": (keras(y_train=np.array([None] * 30)), "set.npz: y_train holds objects of Python, which could run"),
    "objects for images": (keras(x_train=np.array([None] * 30)), r"set.npz: x_train is of shape \(30,\)"),
    "objects for names": (keras(class_names=np.array(["a", None])), "set.npz: class_names holds objects of Python"),
    "too few names": (keras(class_names=np.array(["a", "b"])), "set.npz: class_names: 2 names, but the labels"),
}


@pytest.mark.parametrize("fault", BAD)
def test_arrays_that_are_no_images_and_labels_are_refused_by_file_and_name(saved, fault):
    arrays, message = BAD[fault]
    with pytest.raises(UserError, match=f"^data.root: .*{message}"):
        set_up(saved(**arrays))


def test_other_options_are_refused(saved, tmp_path):
    path = saved(**keras())
    for options, message in (
        ({"test": ["x", "y"]}, "data.train: is missing, and data.test is given"),
        ({"task": "segmentation"}, "data.task: unknown"),
        (
            {"val_fraction": 0.5, "test_fraction": 0.5},
            "data.test_fraction: 0.5 and data.val_fraction 0.5 leave",
        ),
        ({"classes": ["a"]}, "data.classes: 1 names, but the labels in .*y_train go from 0 to 2"),
        ({"shots": 11}, "data.shots: class '0' has 8 images to train on"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            set_up(path, **options)
    with pytest.raises(UserError, match=r"data.root: .*sett.npz does not exist; nearest: set.npz"):
        set_up(tmp_path / "sett.npz")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"classes.txt cannot be read as the names of the classes"):
        set_up(path)


@pytest.mark.long
def test_archive_is_trained_tested_and_predicted_by_its_path(run, saved, photo_root):
    path = saved(**keras(class_names=np.array(["ant", "bee", "cat"])))
    small = ("--model.backbone", "mnist_cnn", "--model.weights", "null", "--trainer.accelerator", "cpu")
    printed = run(
        "finetune", path, *small, "--epochs", 1, "--name", "a", "--refit", "false", "--feature_cache.views", 1
    )
    assert "Data  ImageArrayDataModule: 3 classes (ant, bee, cat)" in printed
    folder = Path("logs/a/version_0")
    assert "augment: basic" in (folder / "config.yaml").read_text()
    checkpoint = folder / "checkpoints/best.ckpt"
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["input"]["fit"] == "squash"
    before = json.loads((folder / "metrics.json").read_text())
    assert before["test"]["images"] == 6
    run("test", folder)
    assert json.loads((folder / "metrics.json").read_text())["test"] == before["test"]
    run("predict", folder, photo_root / "ant", "--out", "found.csv")
    assert len(Path("found.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize("gz", [False, True])
def test_images_cut_short_are_damaged_and_the_labels_are_not_blamed(tmp_path, gz):
    path = tmp_path / "train-images-idx3-ubyte"
    write_idx(path, noise(30))
    content = path.read_bytes()
    path.write_bytes(content[:4] + (3000).to_bytes(4, "big") + content[8:])
    if gz:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels(30))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte[.gz]*: damaged: .* where its header announces"):
        set_up(tmp_path)


def test_folder_of_idx_files_is_planned_and_checked(run, tmp_path):
    folder = tmp_path / "idx"
    x = noise(30)
    x[7] = x[0]  # of another class
    write_idx(folder / "train-images-idx3-ubyte", x)
    write_idx(folder / "train-labels-idx1-ubyte", labels(30), gz=True)
    printed = run("plan", folder, "--model.backbone", "mnist_cnn", "--model.weights", "null")
    assert "train        24 images, 8 a class" in printed
    found = check(ImageArrayDataModule(str(folder)))
    assert [(finding.kind, finding.count) for finding in found.findings if finding.hurts] == [
        ("leak", 2),
        ("contradiction", 2),
    ]


def test_arrays_that_are_given_as_photos_are_answered(tmp_path):
    np.savez(tmp_path / "set.npz", **keras())
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx/train-images-idx3-ubyte.gz").touch()
    for place in ("set.npz", "idx"):
        with pytest.raises(UserError, match=f"for arrays: data ImageArrayDataModule data.root {tmp_path / place}$"):
            _ = ImageFolderDataModule(str(tmp_path / place)).class_names
    (tmp_path / "x.npy").touch()
    with pytest.raises(UserError, match=f"for arrays: data ImageArrayDataModule data.root {tmp_path}$"):
        _ = ImageFolderDataModule(str(tmp_path / "x.npy")).class_names
