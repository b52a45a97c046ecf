"""What all tests share: small image sets in the real formats, and one thread unless OMP_NUM_THREADS says otherwise."""

import gc
import gzip
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from image_files import noise, save_photo, write_idx

from lit_ft.cli import main

# Two threads on two shared cores can take four times as long as one. Also for the processes that tests start.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

# No test cuts the power, and to wait for the disk took a tenth of the time of those that write checkpoints.
os.fsync = lambda descriptor: None


def pytest_generate_tests(metafunc):
    """Refuses cases in a set: pytest-xdist ends when its workers have them in different orders."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        assert not isinstance(mark.args[1], set | frozenset), f"{metafunc.definition.nodeid}: sort {mark.args[1]}"


def pytest_collection_finish():
    """Lets the garbage collector pass over what all tests have loaded; it took an eighth of their time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_data_from_outside(tmp_path, monkeypatch, tmp_path_factory):
    # The folder of a test is made before anything is patched, and so removed after all patches are undone.
    monkeypatch.delenv("LIT_FT_DATA", raising=False)
    monkeypatch.setenv("LIT_FT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def lit_ft(tmp_path, monkeypatch, capsys):
    """Runs commands in an empty folder, as ``lit-ft`` does: exit code, what was printed, and the lines on stderr."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LIT_FT_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def command(*args):
        code = main([*map(str, args)])
        printed = capsys.readouterr()
        return code, printed.out, [line for line in printed.err.splitlines() if "warning" not in line]

    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="lit_ft")  # what it tells its user is no fault
        yield command


@pytest.fixture
def run(lit_ft):
    """Runs a command that must succeed, and gives what it printed."""

    def command(*args):
        code, out, err = lit_ft(*args)
        assert code == 0, err
        return out

    return command


@pytest.fixture
def refused(lit_ft):
    """Runs a command that must be refused, and gives the line on stderr."""

    def command(*args):
        code, _, err = lit_ft(*args)
        assert (code, len(err)) == (2, 1), err
        return err[0]

    return command


@pytest.fixture
def letters_root(tmp_path):
    """EMNIST letters: 5 training and 2 test images a class, the training files gzipped."""
    raw = tmp_path / "EMNIST" / "raw"
    for part, each in (("train", 5), ("test", 2)):
        labels = np.repeat(np.arange(1, 27), each)
        write_idx(raw / f"emnist-letters-{part}-images-idx3-ubyte", noise(len(labels)), gz=part == "train")
        write_idx(raw / f"emnist-letters-{part}-labels-idx1-ubyte", labels, gz=part == "train")
    return tmp_path


@pytest.fixture
def mnist_root(tmp_path):
    """MNIST: 10 training and 3 test images a class."""
    raw = tmp_path / "MNIST" / "raw"
    for part, each in (("train", 10), ("t10k", 3)):
        labels = np.repeat(np.arange(10), each)
        write_idx(raw / f"{part}-images-idx3-ubyte", noise(len(labels)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar_root(tmp_path):
    """CIFAR-10 with 20 images a file; data_batch_2 is gzipped, data_batch_3 pickled with the newest protocol."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(number).integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": data, "labels": [i % 10 for i in range(20)]}
        packed = pickle.dumps(content, protocol=5 if number == 2 else 2)
        if number == 1:
            (folder / f"{name}.gz").write_bytes(gzip.compress(packed))
        else:
            (folder / name).write_bytes(packed)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_NAMES}, protocol=2))
    return tmp_path


COLORS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}


@pytest.fixture
def photo_root(tmp_path):
    """One folder a class, 10 photos each, whose brightness tells their number."""
    root = tmp_path / "photos"
    for name, color in COLORS.items():
        for i in range(10):
            save_photo(root / name / f"{i}.png", tuple(c - 10 * i if c else 0 for c in color))
    return root


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint, and gives its path."""

    def write(content):
        torch.save(content, tmp_path / "x.ckpt")
        return str(tmp_path / "x.ckpt")

    return write
