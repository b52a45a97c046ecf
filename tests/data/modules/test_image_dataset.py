import csv
import importlib
import json
import os
import sys
from itertools import chain, repeat
from pathlib import Path

import dataset_files
import numpy as np
import pytest
import torch
from image_files import save_photo
from torchvision.transforms.v2.functional import pil_to_tensor

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import ImageDatasetDataModule
from lit_ft.data.datasets.items import ItemSplit
from lit_ft.data.files.file_split import FileSplit
from lit_ft.data.images.decode import decode
from lit_ft.data.modules.arrays import ArraySplit
from lit_ft.errors import UserError
from lit_ft.own_code import UserCodeError

pytestmark = pytest.mark.filterwarnings("ignore:there are no test images")
FAKE = {"dataset": "FakeData", "dataset_args": {"size": 60, "image_size": [3, 20, 30], "num_classes": 3}}


def set_up(dataset, root=None, **options):
    options = {"spec": InputSpec(28, 28), "num_workers": 0, **options}
    data = ImageDatasetDataModule(dataset, None if root is None else str(root), **options)
    data.setup()
    return data


@pytest.fixture
def unchecked(monkeypatch):
    """Lets torchvision take small sets for its own, whose checksums it knows."""
    for module in ("flowers102", "svhn"):
        check = f"torchvision.datasets.{module}.check_integrity"
        monkeypatch.setattr(check, lambda path, md5=None: os.path.isfile(path))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module of the user's own, and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def write(text):
        names.append(f"own{len(names)}_{abs(hash(str(tmp_path)))}")
        (tmp_path / f"{names[-1]}.py").write_text(text)
        importlib.invalidate_caches()
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_folds_of_items_have_each_once():
    folds = [set_up(**FAKE, folds=3, fold=fold, test_fraction=0.2) for fold in (1, 2, 3)]
    assert isinstance(folds[0].splits["val"], ItemSplit)
    held = torch.cat([data.splits["val"].rows for data in folds])
    assert torch.cat([held, folds[0].splits["test"].rows]).sort().values.tolist() == list(range(60))


@pytest.mark.filterwarnings("ignore:`data.dataset`. Flowers102. no training images of")
def test_folds_of_files_are_of_train_and_val(tmp_path, unchecked):
    dataset_files.write_flowers(tmp_path)
    folds = [set_up("Flowers102", tmp_path, folds=5, fold=fold) for fold in range(1, 6)]
    assert [data.sizes() for data in folds] == [{"train": 12, "val": 3, "test": 6}] * 5
    held = {path.name for data in folds for path in data.splits["val"].paths}
    assert held == {f"image_{number:05d}.jpg" for number in range(1, 16)}


def test_images_in_memory_are_read_as_arrays(tmp_path):
    data = set_up("FashionMNIST", dataset_files.write_fashion_mnist(tmp_path))
    assert all(isinstance(split, ArraySplit) for split in data.splits.values())
    assert data.sees_whole_images
    assert not data.in_files
    assert data.class_names[:3] == ["T-shirt/top", "Trouser", "Pullover"]
    assert data.counts() == {"train": [4] * 10, "val": [1] * 10, "test": [1] * 10}
    images, targets = next(iter(data.val_dataloader()))
    assert (images[:, 0, 0, 0] % 10).equal(targets)
    images, indices = next(iter(data.predict_dataloader()))
    assert images[:, 0, 0, 0].equal(indices)
    assert data.predict_paths[5] == "FashionMNIST/test/5"
    assert next(iter(data.train_dataloader()))[0].shape == (32, 1, 28, 28)


def test_images_in_memory_have_no_fit_and_items_have(tmp_path):
    root = dataset_files.write_fashion_mnist(tmp_path)
    with pytest.raises(UserError, match=r"^data.fit: pad is for photos, and images in memory are squeezed; leave it"):
        set_up("FashionMNIST", root, fit="pad")
    data = set_up(**FAKE, fit="pad")  # of 20 x 30 pixels
    images, _ = next(iter(data.val_dataloader()))
    assert (images[:, :, [0, 3, 24, 27]] == torch.tensor([124, 116, 104]).view(3, 1, 1)).all()
    assert images[:, :, 4:24].float().std() > 10


def test_photos_are_read_as_files_and_not_by_the_data_set(tmp_path, unchecked):
    root = dataset_files.write_flowers(tmp_path)
    with pytest.warns(UserWarning, match=r"Flowers102: no training images of .* and 94 more, so these are no classes"):
        data = set_up("Flowers102", root)
    assert data.in_files
    assert not data.sees_whole_images
    assert data.sizes() == {"train": 12, "val": 3, "test": 6}
    assert data.class_names[:2] == ["pink primrose", "hard-leaved pocket orchid"]
    paths = [Path(path).name for path in data.predict_paths]
    assert paths == [f"image_{number:05d}.jpg" for number in range(16, 22)]
    assert data.splits["test"].targets.tolist() == [number % 3 for number in range(16, 22)]
    images, _ = next(iter(data.test_dataloader()))
    expected = data.input_spec.geometry()(decode(root / "flowers-102/jpg/image_00016.jpg"))
    assert images[0].equal(expected)
    data.write_split(tmp_path / "split.csv")
    rows = list(csv.DictReader((tmp_path / "split.csv").open()))
    assert len(rows) == 21
    assert (rows[0]["label"], rows[0]["split"]) == ("hard-leaved pocket orchid", "train")


def test_files_that_pillow_has_opened_are_read_as_files(tmp_path):
    data = set_up("Caltech101", dataset_files.write_caltech(tmp_path), test_fraction=0.2)
    assert isinstance(data.splits["train"], FileSplit)
    assert data.class_names == ["ant", "bee"]
    assert all(
        Path(split.paths.full(row)).parent.name == data.class_names[split.targets[row]]
        for split in data.splits.values()
        for row in range(len(split))
        if split is not data.splits["predict"]
    )


def test_images_that_are_neither_are_read_item_by_item(tmp_path):
    data = set_up("GTSRB", dataset_files.write_traffic_signs(tmp_path))
    assert isinstance(data.splits["train"], ItemSplit)
    assert data.counts() == {"train": [4, 4, 4], "val": [1, 1, 1], "test": [1, 1, 1]}
    test = data.splits["test"]
    assert [test.image(row)[:, 0, 0].argmax().item() for row in range(3)] == [0, 1, 2]
    images, targets = next(iter(data.test_dataloader()))
    path = tmp_path / "gtsrb/GTSRB/Final_Test/Images/00002.ppm"
    assert images[2].equal(data.input_spec.geometry()(decode(path)))
    assert targets.tolist() == [0, 1, 2]
    assert data.predict_paths == ["GTSRB/test/0", "GTSRB/test/1", "GTSRB/test/2"]


@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_augmented_by_seed_and_place_with_any_number_of_workers(workers):
    data = set_up(**FAKE, num_workers=workers, batch_size=16)
    dataset = importlib.import_module("torchvision.datasets").FakeData(60, (3, 20, 30), 3)
    val = data.splits["val"]
    assert val.image(1).equal(pil_to_tensor(dataset[int(val.rows[1])][0]))
    assert val.targets.tolist() == [int(dataset[row][1]) for row in val.rows.tolist()]
    data.order_seed = 5
    batches = list(data.train_dataloader())
    assert sum(map(len, (targets for _, targets in batches))) == 48
    if workers:
        alone = set_up(**FAKE, batch_size=16)
        alone.order_seed = 5
        assert all(one[0].equal(other[0]) for one, other in zip(batches, alone.train_dataloader(), strict=True))


SPLITS = {
    "SVHN": (dataset_files.write_svhn, {"train": 12, "val": 3, "test": 6}, ArraySplit),
    "OxfordIIITPet": (dataset_files.write_pets, {"train": 6, "val": 2, "test": 4}, ItemSplit),
    "DTD": (dataset_files.write_textures, {"train": 9, "val": 2, "test": 3}, FileSplit),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_those_of_the_signature(tmp_path, unchecked, name):
    write, sizes, form = SPLITS[name]
    data = set_up(name, write(tmp_path))
    assert data.sizes() == sizes
    assert isinstance(data.splits["train"], form)


def test_splits_that_number_their_own_classes_agree_by_name(tmp_path):
    data = set_up("DTD", dataset_files.write_textures(tmp_path))
    assert data.class_names == ["a", "b", "c"]
    names = [Path(data.splits["val"].paths.full(row)).parent.name for row in range(2)]
    assert [data.class_names[target] for target in data.splits["val"].targets] == names == ["b", "c"]


def test_arguments_of_splits_are_those_that_are_given(tmp_path):
    for split in ("one", "two"):
        for name in ("ant", "bee"):
            for number in range(5):
                save_photo(tmp_path / split / name / f"{number}.png")
    folders = {split: {"root": str(tmp_path / name)} for split, name in (("train", "one"), ("test", "two"))}
    data = set_up("ImageFolder", split_args=folders)
    assert data.sizes() == {"train": 8, "val": 2, "test": 10}
    assert Path(data.predict_paths[0]) == tmp_path / "two/ant/0.png"


def test_classes_are_named_by_an_option(tmp_path):
    data = set_up("GTSRB", dataset_files.write_traffic_signs(tmp_path), classes=["stop", "yield", "go"])
    assert data.class_names == ["stop", "yield", "go"]
    with pytest.raises(UserError, match=r"data.classes: 2 names, but the labels in GTSRB \(train\) go from 0 to 2"):
        set_up("GTSRB", tmp_path, classes=["stop", "yield"])


OWN = """
import numpy as np
import torch
from torch.utils.data import Dataset


class Squares(Dataset):
    classes = ["dark", "bright"]

    def __init__(self, root, split="train", grey=False):
        if split not in ("train", "test"):
            raise KeyError(split)
        self.root, self.numbers, self.grey = root, range(20 if split == "train" else 6), grey

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        image = np.full((10, 12) if self.grey else (10, 12, 3), 100 * (index % 2) + index, np.uint8)
        return image, torch.tensor(index % 2)


class Fractions(Squares):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return torch.from_numpy(image).permute(2, 0, 1) / 255, float(index)


class Marked(Squares):
    classes = ["odd", "third"]

    def __getitem__(self, index):
        return super().__getitem__(index)[0], [index % 2, int(index % 3 == 0)]


class Named(Squares):
    classes = None

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image, ("dark", "bright")[target]


class Unlabelled(Squares):
    def __init__(self, root, split="train"):
        super().__init__(root, split)
        self.is_test = split == "test"

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image, None if self.is_test else target


class Failing(Squares):
    def __getitem__(self, index):
        return super().__getitem__(index)[0], {"label": 1}[index]


class Triple(Squares):
    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


class Normalised(Squares):
    def __getitem__(self, index):
        return torch.randn(3, 8, 8), 0


class Changing(Squares):
    read = 0

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        type(self).read += 1
        return image, target if self.read < 100 else 1 - target


def sets():
    return Squares(".")
"""


@pytest.mark.filterwarnings("ignore:.*has no split called val")
def test_own_classes_are_read_likewise(own, tmp_path):
    name = own(OWN)
    data = set_up(f"{name}.Squares", tmp_path)
    assert data.class_names == ["dark", "bright"]
    assert data.sizes() == {"train": 16, "val": 4, "test": 6}
    assert data.splits["train"].image(3).shape == (3, 10, 12)
    assert data.splits["test"].image(3).unique().tolist() == [103]
    grey = set_up(f"{name}.Squares", tmp_path, dataset_args={"grey": True})
    assert grey.splits["test"].image(3).equal(data.splits["test"].image(3))
    numbers = set_up(f"{name}.Fractions", tmp_path, task="regression")
    assert numbers.splits["test"].image(3).equal(data.splits["test"].image(3))
    assert numbers.splits["test"].targets.tolist() == [[float(number)] for number in range(6)]
    marked = set_up(f"{name}.Marked", tmp_path, task="multilabel")
    assert (marked.class_names, marked.counts()["test"]) == (["odd", "third"], [3, 2])
    named = set_up(f"{name}.Named", tmp_path)
    assert named.class_names == ["bright", "dark"]
    assert named.splits["test"].targets.tolist() == [1, 0, 1, 0, 1, 0]
    with pytest.warns(UserWarning, match=r"Unlabelled \(test\) has no targets, so it is not used"):
        assert set_up(f"{name}.Unlabelled", tmp_path).sizes() == {"train": 16, "val": 4}


@pytest.mark.filterwarnings("ignore:.*has no split called val")
def test_own_class_that_raises_is_a_user_error_of_its_exception(own, tmp_path):
    name = own(OWN)
    with pytest.raises(
        UserCodeError, match=rf"^data.dataset: {name}.Failing raised KeyError at item 0 of train: 0$"
    ) as raised:
        set_up(f"{name}.Failing", tmp_path)
    assert isinstance(raised.value.__cause__, KeyError)
    assert f"{name}.py" in raised.value.trace
    with pytest.raises(UserCodeError, match="raised ZeroDivisionError at the import of"):
        set_up(f"{own('1 / 0')}.Any", tmp_path)


TURNED = """
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader


class Turned(ImageFolder):
    def __init__(self, root, loader=default_loader):
        super().__init__(root, loader=loader)

    def __getitem__(self, index):
        path, target = self.samples[index]
        return self.loader(path).transpose(Image.Transpose.ROTATE_90), target


class Failing(Turned):
    def __getitem__(self, index):
        raise ValueError("of its own")
"""


def test_own_class_that_changes_what_its_loader_loads_is_read_item_by_item(own, tmp_path):
    for name in ("ant", "bee"):
        for number in range(5):
            save_photo(tmp_path / "photos" / name / f"{number}.png", size=(12, 20))
    module = own(TURNED)
    train = set_up(f"{module}.Turned", tmp_path / "photos").splits["train"]
    assert isinstance(train, ItemSplit)
    assert train.image(0).shape == (3, 12, 20)  # turned by 90 degrees
    with pytest.raises(UserCodeError, match=r"Failing raised ValueError at item 0 of train: of its own$"):
        set_up(f"{module}.Failing", tmp_path / "photos")


FAULTS = {
    "Triple": r"^data.dataset: item 0 of Triple \(train\) is 3 things, and not an image and its target",
    "Normalised": r"^data.dataset: the image of item 0 of Normalised \(train\) is float with values from -.*normalised",
    "sets": "is no data set, which is a class with __getitem__ and __len__",
    "Square": r"^data.dataset: unknown class of own\w+ 'Square'; nearest: Squares",
}


@pytest.mark.filterwarnings("ignore:.*has no split called val")
@pytest.mark.parametrize("cls", FAULTS)
def test_own_class_that_is_no_data_set_is_refused(own, tmp_path, cls):
    with pytest.raises(UserError, match=FAULTS[cls]):
        set_up(f"{own(OWN)}.{cls}", tmp_path)


@pytest.mark.filterwarnings("ignore:.*has no split called val")
def test_target_that_changes_is_refused_as_it_is_read(own, tmp_path):
    data = set_up(f"{own(OWN)}.Changing", tmp_path)
    loader = data.val_dataloader()
    with pytest.raises(UserError, match=r"item \d+ of Changing \(train\) now has the target .*; a data set must give"):
        list(chain.from_iterable(repeat(loader, 30)))


REFUSED = {
    "missing files": ({"dataset": "FashionMNIST"}, r"^data.root: FashionMNIST cannot be read from \S+ \(Dataset not fou"
                      r"nd\); to fetch what is missing: data.download true$"),
    "no class": ({}, "^data.dataset: is missing; name a class"),
    "unknown": ({"dataset": "FashonMNIST"}, "^data.dataset: unknown data set of torchvision 'FashonMNIST'; nearest: F"),
    "no module": ({"dataset": "nowhere.Set"}, "^data.dataset: nowhere.Set: there is no module nowhere"),
    "argument": ({**FAKE, "dataset_args": {"sise": 3}}, "^data.dataset_args: unknown argument of FakeData 'sise'; nea"),
    "split missing": ({"dataset": "EMNIST"}, "^data.dataset_args: EMNIST needs split; give data.dataset_args '{spl"),
    "split unknown": ({"dataset": "EMNIST", "dataset_args": {"split": "x"}}, "^data.dataset_args: EMNIST: Unknown va"),
    "ours": ({**FAKE, "dataset_args": {"transform": "x"}}, "^data.dataset_args: transform is not for the class; give"),
    "no training": ({**FAKE, "split_args": {"test": {}}}, "^data.split_args: has test; give train, and perhaps val"),
    "cache": ({**FAKE, "cache": "x"}, "^data.cache: is for images in files, and those of FakeData are in none"),
    "bands": ({**FAKE, "bands": [1]}, "^data.bands: is for images in files, and those of FakeData are in"),
    "skip": ({**FAKE, "on_bad_image": "skip"}, "^data.on_bad_image: is for images in files"),
    "fit": ({**FAKE, "fit": "nix"}, r"^data.fit: unknown fit 'nix' \(choose from crop, pad, squash\)$"),
    "empty": ({**FAKE, "dataset_args": {"size": 0}}, r"^data.dataset: FakeData \(train\) has no images"),
    "task": ({**FAKE, "task": "multilabel"}, r"^data.dataset: FakeData \(train\) is int64 \(60,\); multilabel takes"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_data_set_that_cannot_be_used_is_refused(tmp_path, fault):
    options, message = REFUSED[fault]
    with pytest.raises(UserError, match=message):
        set_up(**{"dataset": None, "root": tmp_path, **options})


def test_item_of_torchvision_that_cannot_be_read_is_refused_before_training(tmp_path):
    path = dataset_files.write_traffic_signs(tmp_path) / "gtsrb/GTSRB/Training/00001/00004.ppm"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"^data.dataset: item \d+ of GTSRB \(train\) cannot be read \(.*truncated"):
        set_up("GTSRB", tmp_path)


def test_labels_of_items_are_read_once_and_again_when_the_data_set_changes(monkeypatch):
    args = {"size": 130, "image_size": [1, 4, 4], "num_classes": 2}
    set_up("FakeData", dataset_args=args)
    swept = []
    forms = importlib.import_module("lit_ft.data.datasets.forms")
    real = forms.sweep
    monkeypatch.setattr(forms, "sweep", lambda things, *given: swept.append(len(things)) or real(things, *given, 0))
    again = set_up("FakeData", dataset_args=args)
    assert swept == []
    other = set_up("FakeData", dataset_args={**args, "random_offset": 7})
    assert swept == [130]
    assert not torch.equal(other.train_targets(), again.train_targets())


def test_download_fetches_only_when_asked_and_files_are_missing(tmp_path, monkeypatch):
    fetched = []

    def fetch(self):
        fetched.append(self.root)
        dataset_files.write_fashion_mnist(tmp_path)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", fetch)
    data = ImageDatasetDataModule("FashionMNIST", str(tmp_path), download=True, spec=InputSpec(28, 28))
    assert data.missing_files() == [tmp_path / "FashionMNIST"]
    data.prepare_data()
    assert fetched
    assert data.missing_files() == []
    data.setup()
    assert data.sizes()["test"] == 10
    del fetched[:]
    again = ImageDatasetDataModule("FashionMNIST", str(tmp_path), download=True)
    again.prepare_data()
    assert fetched == []
    folder = ImageDatasetDataModule("EuroSAT", str(tmp_path), download=True, spec=InputSpec(28, 28))
    monkeypatch.setenv("LIT_FT_OFFLINE", "1")
    with pytest.raises(UserError, match="offline: files are missing"):
        folder.prepare_data()


@pytest.mark.long
def test_small_set_is_trained_tested_and_probed_by_the_name_of_its_class(run, refused, tmp_path, own):
    module = own(OWN.replace("class Squares(Dataset)", "class Squares(Dataset)"))
    small = ("--model.backbone", "mnist_cnn", "--model.weights", "null", "--trainer.accelerator", "cpu")
    data = ("--data", "ImageDatasetDataModule", "--data.dataset", f"{module}.Squares", "--data.root", tmp_path)
    run("finetune", *data, *small, "--epochs", 1, "--name", "a", "--data.num_workers", 0)
    folder = Path("logs/a/version_0")
    config = (folder / "config.yaml").read_text()
    assert f"dataset: {module}.Squares" in config
    assert not (folder / "split.csv").exists()  # images in no files
    before = json.loads((folder / "metrics.json").read_text())["test"]
    line = refused("test", folder)
    assert f"the checkpoint names the data set {module}.Squares, whose code would run; if you trust it, name it" in line
    run("test", folder, "--data.dataset", f"{module}.Squares")
    assert json.loads((folder / "metrics.json").read_text())["test"] == before
    assert np.isfinite(before["test/loss"])
    with pytest.raises(UserError, match="names the data set"):
        ImageDatasetDataModule.load_from_checkpoint(folder / "checkpoints/best.ckpt")
