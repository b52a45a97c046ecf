import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from lit_ft.backbones.spec import InputSpec
from lit_ft.data import CIFAR10DataModule
from lit_ft.data.cifar import published_md5, read_pickle
from lit_ft.errors import UserError


def make(root, **options):
    return CIFAR10DataModule(str(root), val_fraction=0.2, spec=InputSpec(size=32, resize=32), **options)


@pytest.mark.filterwarnings("ignore:.*checksums")
def test_images_and_targets_are_those_of_the_files(cifar_root):
    data = make(cifar_root)
    data.setup()
    images, targets = next(iter(data.test_dataloader()))
    expected = np.random.default_rng(5).integers(0, 256, (20, 3072), dtype=np.uint8).reshape(20, 3, 32, 32)
    assert np.array_equal(images.numpy(), expected)
    assert targets.tolist() == [i % 10 for i in range(20)]
    assert data.counts() == {"train": [8] * 10, "val": [2] * 10, "test": [2] * 10}
    assert data.class_names[9] == "truck"
    assert data.predict_paths[3] == "CIFAR10/test/3"


@pytest.mark.filterwarnings("ignore:.*checksums")
def test_all_five_training_files_are_read(cifar_root):
    data = make(cifar_root, augment="none")
    data.setup()
    seen = {
        bytes(x.numpy()) for loader in (data.train_dataloader(), data.val_dataloader()) for xs, _ in loader for x in xs
    }
    written = {
        bytes(row) for i in range(5) for row in np.random.default_rng(i).integers(0, 256, (20, 3072), dtype=np.uint8)
    }
    assert seen == written


def test_checksums_are_one_warning(cifar_root):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(cifar_root).setup()
    told = [str(w.message) for w in caught if "checksums" in str(w.message)]
    assert len(told) == 1
    assert all(name in told[0] for name in published_md5())
    assert "\n" not in told[0]


def test_matching_checksums_are_silent(cifar_root, monkeypatch):
    sums = {name: read_pickle(cifar_root / "cifar-10-batches-py" / name)[1] for name in published_md5()}
    monkeypatch.setattr("lit_ft.data.cifar.published_md5", lambda: sums)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(cifar_root, verify=True).setup()


def test_published_checksums_are_those_of_the_archive():
    assert published_md5()["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert len(published_md5()) == 7


def test_verify_makes_checksums_an_error(cifar_root):
    with pytest.raises(UserError, match=r"^--data.verify: .*checksums differ .*data_batch_1"):
        make(cifar_root, verify=True).setup()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_runs_code_is_refused(cifar_root, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = cifar_root / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(UserError, match=r"data_batch_4: not a CIFAR-10 file \(.*system is not allowed in it\)"):
        make(cifar_root).setup()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not a CIFAR-10 file"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 file"),
        (pickle.dumps({"labels": [1]}), "its 'data' is no uint8 array"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "1 labels for 2 images"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "labels are not all from 0 to 9"),
    ],
)
def test_damaged_files(cifar_root, content, message):
    path = cifar_root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"test_batch: .*{message}"):
        make(cifar_root).setup()


def test_other_classes_are_refused(cifar_root):
    path = cifar_root / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(UserError, match=r"batches.meta: not CIFAR-10: its classes are \['cat'\]"):
        make(cifar_root).setup()


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"missing file .*cifar-10-batches-py/batches.meta .*--data.download true"):
        make(tmp_path).setup()


@pytest.mark.filterwarnings("ignore:.*checksums")
def test_augmentation_differs_by_epoch_and_not_by_global_seed(cifar_root):
    data = make(cifar_root)
    data.setup()
    data.order_seed = 1
    loader = data.train_dataloader()

    def pixels(epoch, seed):
        torch.manual_seed(seed)
        loader.sampler.set_epoch(epoch)
        images = [(int(y), x) for xs, ys in loader for x, y in zip(xs, ys, strict=True)]
        return torch.stack([x for _, x in images])

    assert pixels(0, 1).equal(pixels(0, 2))
    assert not pixels(0, 1).equal(pixels(1, 1))
