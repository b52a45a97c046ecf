"""The real data sets, where LIT_FT_DATA says they are."""

import gzip
import os
import shutil
from pathlib import Path

import pytest
import torch

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import (
    ImageArrayDataModule,
    ImageDatasetDataModule,
    ImageFolderDataModule,
    MNISTToEMNISTDataModule,
)

ROOT = os.environ.get("LIT_FT_DATA", "")
GREY = InputSpec(size=28, resize=28, mean=(0.13,), std=(0.31,))

pytestmark = [pytest.mark.real_data, pytest.mark.skipif(not ROOT, reason="LIT_FT_DATA is not set")]


def need(*parts):
    folder = Path(ROOT, *parts)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def test_mnist_has_its_published_sizes_and_first_labels():
    need("MNIST", "raw")
    data = MNISTToEMNISTDataModule(ROOT, domain="source", spec=GREY, batch_size=1000)
    data.setup()
    assert {name: sum(n) for name, n in data.counts().items()} == {"train": 54000, "val": 6000, "test": 10000}
    images, targets = next(iter(data.test_dataloader()))
    assert targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert 0.12 < images.float().mean() / 255 < 0.14


def test_mnist_is_the_same_as_arrays_and_as_a_data_set_of_torchvision(tmp_path):
    folder = need("MNIST", "raw")
    known = MNISTToEMNISTDataModule(ROOT, domain="source", spec=GREY)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for path in folder.glob("*.gz"):
        with gzip.open(path) as packed, (tmp_path / "MNIST/raw" / path.stem).open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    arrays = ImageArrayDataModule(str(folder), spec=GREY, val_fraction=0.1)
    dataset = ImageDatasetDataModule("MNIST", str(tmp_path), spec=GREY, val_fraction=0.1)
    for data in (known, arrays, dataset):
        data.setup()
    assert dataset.class_names[7] == "7 - seven"
    assert arrays.class_names == known.class_names
    for split in ("train", "val", "test"):
        expected = known.splits[split]
        for data in (arrays, dataset):
            found = data.splits[split]
            assert found.targets.equal(expected.targets)
            assert found.images[found.rows].equal(expected.images[expected.rows])


def test_letters_stand_in_is_read_upright():
    data = MNISTToEMNISTDataModule(str(need("cyrillic_as_emnist")), split="letters", spec=GREY, batch_size=1000)
    data.setup()
    counts = data.counts()
    assert sum(counts["train"]) + sum(counts["val"]) == 73020
    assert sum(counts["test"]) == 8101
    assert min(counts["test"]) > 0
    images = torch.cat([x for x, _ in data.test_dataloader()]).float()
    # Handwriting is slanted to the right: its upper half has more ink on the right than its lower half has.
    columns = torch.arange(28.0)

    def centre(part):
        return float((part.sum((0, 1, 2)) * columns).sum() / part.sum())

    assert centre(images[..., :14, :]) > centre(images[..., 14:, :])


def test_flowers_are_read():
    data = ImageFolderDataModule(str(need("flowers5")), num_workers=0, spec=InputSpec(64, 72))
    data.setup()
    assert data.class_names == ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    assert data.counts() == {"train": [100] * 5, "val": [40] * 5}
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (32, 3, 64, 64)
    assert 60 < images.float().mean() < 180
