import gzip
import os
import pickle
import re
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from derived_files import rewrite

from lit_ft.backbones.input_spec import InputSpec
from lit_ft.data import CIFAR10DataModule
from lit_ft.data.modules.cifar import published_md5, read_pickle
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
    monkeypatch.setattr("lit_ft.data.modules.cifar.published_md5", lambda: sums)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(cifar_root, verify=True).setup()


def test_published_checksums_are_those_of_the_archive():
    assert published_md5()["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert len(published_md5()) == 7


def test_verify_makes_checksums_an_error(cifar_root):
    with pytest.raises(UserError, match=r"^data.verify: .*checksums differ .*data_batch_1"):
        make(cifar_root, verify=True).setup()


def batch(**changed):
    """A pickle of two images, with these parts changed."""
    return pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], **changed})


class Evil:
    does = None

    def __reduce__(self):
        return self.does


@pytest.mark.parametrize(
    "does",
    [
        (os.system, ("touch pwned",)),
        (eval, ("open('pwned', 'w')",)),
        (np.memmap, ("pwned", np.uint8, "w+", 0, (1,))),  # of numpy, and yet not harmless
        (pickle.loads, (pickle.dumps(print),)),
    ],
)
def test_a_pickle_that_runs_code_is_refused(cifar_root, monkeypatch, tmp_path, does):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Evil, "does", does)
    path = cifar_root / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(pickle.dumps({"data": Evil()}))
    told = rf"data_batch_4: not a CIFAR-10 file \(.*{does[0].__name__} is not allowed in it\)"
    with pytest.raises(UserError, match=told):
        make(cifar_root).setup()
    assert not (tmp_path / "pwned").exists()


def reconstructed(shape):
    """A pickle whose array begins as one of a shape, as numpy's begin with that of (0,)."""
    head = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    return head + pickle.dumps(shape, 2)[2:-1] + b"U\x01b\x87Rs."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (reconstructed((10**7, 3072)), "an array begins with the shape (10000000, 3072)"),
        (b"\x80\x02}r" + (10**6).to_bytes(4, "little") + b".", "it numbers an object 1000000"),
        (b"\x80\x02c_codecs\nencode\nU\x01aU\x04zlib\x86R.", "the encoding zlib is not allowed in it"),
        (b"\x80\x05\x96" + (10**9).to_bytes(8, "little") + b".", "expected 1000000000 bytes in a bytearray8"),
    ],
)
def test_a_pickle_that_takes_memory_it_does_not_have_is_refused(cifar_root, content, message):
    (cifar_root / "cifar-10-batches-py" / "data_batch_4").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"data_batch_4: not a CIFAR-10 file ({message}")):
        make(cifar_root).setup()


def test_no_more_is_unpacked_than_a_file_may_have(cifar_root, monkeypatch):
    monkeypatch.setattr("lit_ft.data.modules.cifar._MOST_BYTES", 1 << 20)
    (cifar_root / "cifar-10-batches-py" / "data_batch_2.gz").write_bytes(gzip.compress(bytes(32 << 20)))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"data_batch_2: not a CIFAR-10 file \(it has more than 1,048,576 bytes\)$"):
        make(cifar_root).setup()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CIFAR-10 file"),
        (b"<html>", "not a CIFAR-10 file"),
        (batch()[:-1], "not a CIFAR-10 file"),
        (batch()[:2000], "not a CIFAR-10 file"),
        (pickle.dumps([1, 2]), "not a CIFAR-10 file"),
        (pickle.dumps({"labels": [1]}), "its 'data' is no uint8 array"),
        (batch(data=[0] * 3072), "its 'data' is no uint8 array"),
        (batch(data=np.zeros((2, 3071), np.uint8)), "its 'data' is no uint8 array"),
        (batch(data=np.zeros((2, 3, 32, 32), np.uint8)), "its 'data' is no uint8 array"),
        (batch(data=np.zeros((2, 3072), np.float32)), "its 'data' is no uint8 array"),
        (batch(data=np.zeros((0, 3072), np.uint8), labels=[]), "its 'data' is no uint8 array"),
        (batch(labels=[1]), "1 labels for 2 images"),
        (batch(labels=[1, 2, 3]), "3 labels for 2 images"),
        (batch(labels=None), "0 labels for 2 images"),
        (batch(labels=[0, 10]), "labels are not all from 0 to 9"),
        (batch(labels=[0, -1]), "labels are not all from 0 to 9"),
        (batch(labels=[0, "cat"]), "labels are not all from 0 to 9"),
        (batch(labels=[[0], [1, 2]]), "labels are not all from 0 to 9"),
    ],
)
def test_damaged_files(cifar_root, content, message):
    path = cifar_root / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"test_batch: .*{message}") as caught:
        make(cifar_root).setup()
    assert "\n" not in str(caught.value)


def test_cut_gzip(cifar_root):
    path = cifar_root / "cifar-10-batches-py" / "data_batch_2.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"data_batch_2: not a CIFAR-10 file \(Compressed file ended before"):
        make(cifar_root).setup()


@pytest.mark.parametrize("name", ["data_batch_2", "data_batch_5", "test_batch", "batches.meta"])
def test_missing_batch(cifar_root, name):
    for path in (cifar_root / "cifar-10-batches-py").glob(f"{name}*"):
        path.unlink()
    with pytest.raises(UserError, match=rf"^data.root: missing file .*{name} .*data.download true"):
        make(cifar_root).setup()


@pytest.fixture
def started(cifar_root, monkeypatch):
    """The data after a first start, from which on no file may be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(cifar_root).setup()

    def read(path):
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("lit_ft.data.modules.cifar.read_pickle", read)
    return cifar_root


def test_a_second_start_reads_no_file_and_still_tells_of_checksums(started):
    data = make(started)
    with pytest.warns(UserWarning, match=r"checksums differ .*data_batch_1, .*test_batch"):
        data.setup()
    images, targets = next(iter(data.test_dataloader()))
    written = np.random.default_rng(5).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert np.array_equal(images.flatten(1).numpy(), written)
    assert targets.tolist() == [i % 10 for i in range(20)]
    assert data.counts() == {"train": [8] * 10, "val": [2] * 10, "test": [2] * 10}


def test_a_second_start_still_refuses_checksums(started):
    with pytest.raises(UserError, match=r"^data.verify: .*checksums differ .*data_batch_1"):
        make(started, verify=True).setup()


@pytest.mark.parametrize("change", ["touch", "remove", "gz"])
def test_a_file_that_changed_is_read_again(started, change):
    path = started / "cifar-10-batches-py" / "data_batch_4"
    if change == "touch":
        os.utime(path, ns=(1, 1))
    else:
        path.rename(path.with_name("x" if change == "remove" else "data_batch_4.gz"))
    with pytest.raises(AssertionError, match="is read again"):
        make(started).setup()


def test_other_classes_are_refused(cifar_root):
    path = cifar_root / "cifar-10-batches-py" / "batches.meta"
    path.write_bytes(pickle.dumps({"label_names": ["cat"]}))
    with pytest.raises(UserError, match=r"batches.meta: not CIFAR-10: its classes are \['cat'\]"):
        make(cifar_root).setup()


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"missing file .*cifar-10-batches-py/batches.meta .*data.download true"):
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


STRANGE = {
    "no images": lambda arrays, facts: arrays.pop("train_images"),
    "images of another type": lambda arrays, facts: arrays.update(test_images=arrays["test_images"].float()),
    "images of another size": lambda arrays, facts: arrays.update(
        {f"{part}_images": arrays[f"{part}_images"][..., :16].contiguous() for part in ("train", "test")}
    ),
    "two sizes": lambda arrays, facts: arrays.update(train_images=arrays["train_images"][..., :16].contiguous()),
    "fewer targets": lambda arrays, facts: arrays.update(train_targets=arrays["train_targets"][1:].clone()),
    "targets out of range": lambda arrays, facts: arrays["test_targets"].fill_(10),
    "targets below zero": lambda arrays, facts: arrays["train_targets"][3].fill_(-1),
    "no test images": lambda arrays, facts: arrays.update(
        test_images=torch.zeros(0, 3, 32, 32, dtype=torch.uint8), test_targets=torch.zeros(0, dtype=torch.long)
    ),
    "no facts": lambda arrays, facts: facts.clear(),
    "no sums": lambda arrays, facts: facts.pop("md5"),
    "other sums": lambda arrays, facts: facts.update(md5=[1]),
    "sums of other files": lambda arrays, facts: facts.update(md5={"x": "y"}),
}


@pytest.mark.filterwarnings("ignore:.*checksums")
@pytest.mark.parametrize("strange", STRANGE)
def test_kept_arrays_of_another_kind_are_made_anew(cifar_root, tmp_path, monkeypatch, strange):
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path / "kept"))
    make(cifar_root).setup()
    [path] = (tmp_path / "kept").iterdir()
    before = path.read_bytes()
    rewrite(path, STRANGE[strange])
    assert path.read_bytes() != before
    data = make(cifar_root)
    data.setup()
    assert path.read_bytes() == before
    assert data.counts() == {"train": [8] * 10, "val": [2] * 10, "test": [2] * 10}
